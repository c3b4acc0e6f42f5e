/* forkexecd serves until its launcher ends. */
void forkexecd(void) __attribute__((noreturn));
