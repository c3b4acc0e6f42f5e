#include <pthread.h>
#include <signal.h>
#include <stdint.h>

extern void dtThreadBody(uintptr_t handle);

static void *body(void *handle)
{
	dtThreadBody((uintptr_t)handle);
	return 0;
}

int dtStartThread(uintptr_t handle)
{
	pthread_attr_t attr;
	pthread_t thread;
	int err = pthread_attr_init(&attr);

	if (err)
		return err;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 256 << 10);
	err = pthread_create(&thread, &attr, body, (void *)handle);
	pthread_attr_destroy(&attr);
	return err;
}
