#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "early.h"

enum {
	COMMANDS = 3, /* lines of the launcher, as package node has it */
	ANSWERS = 4,
	DIGITS = 12, /* of a frame's length */
	UUID = 36,
	MOST = 256, /* arguments, variables, descriptors */
	LONGEST = 1 << 20, /* frame */
};

static const char main_path[] = "/var/xapi/forker/main";
static const char fd_dir[] = "/var/run/nonpersistent/forkexecd/";

/* What a caller asks for. */
struct setup {
	char *arg[MOST + 1];
	char *env[MOST + 1];
	int args, envs;
	struct {
		char *uuid;
		int want; /* the number that it has to have, -1: any */
		int fd;	  /* -1: not received */
	} fds[MOST];
	int n;
};

static void die(const char *what)
{
	fprintf(stderr, "forkexecd: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static int read_all(int fd, char *b, size_t n)
{
	while (n > 0) {
		ssize_t got = read(fd, b, n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return 0;
		b += got;
		n -= got;
	}
	return 1;
}

static int write_all(int fd, const char *b, size_t n)
{
	while (n > 0) {
		ssize_t put = write(fd, b, n);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return 0;
		b += put;
		n -= put;
	}
	return 1;
}

/* read_frame returns what stands behind its length; the caller frees it. */
static char *read_frame(int fd)
{
	char head[DIGITS + 1] = "";
	char *body, *end;
	long n;

	if (!read_all(fd, head, DIGITS))
		return 0;
	n = strtol(head, &end, 10);
	if (*end || n <= 0 || n > LONGEST)
		return 0;
	body = malloc(n + 1);
	if (!body || !read_all(fd, body, n)) {
		free(body);
		return 0;
	}
	body[n] = 0;
	return body;
}

static int write_frame(int fd, const char *body)
{
	char frame[512];
	int n = snprintf(frame, sizeof(frame), "%012zu%s", strlen(body), body);

	return n > 0 && n < (int)sizeof(frame) && write_all(fd, frame, n);
}

/* JSON, read in place. Each of these returns 0 for what it cannot read. */

static void space(char **p)
{
	*p += strspn(*p, " \t\r\n");
}

static int is(char **p, char c)
{
	space(p);
	if (**p != c)
		return 0;
	++*p;
	return 1;
}

static char *text(char **p)
{
	char *out, *start;

	if (!is(p, '"'))
		return 0;
	for (start = out = *p; **p && **p != '"'; ++*p) {
		if (**p != '\\') {
			*out++ = **p;
			continue;
		}
		switch (*++*p) {
		case 'n':
			*out++ = '\n';
			break;
		case 't':
			*out++ = '\t';
			break;
		case 'r':
			*out++ = '\r';
			break;
		case '"':
		case '\\':
		case '/':
			*out++ = **p;
			break;
		default: /* nobody sends any other */
			return 0;
		}
	}
	if (!**p)
		return 0;
	++*p;
	*out = 0;
	return start;
}

static int texts(char **p, char **out, int *n)
{
	if (!is(p, '['))
		return 0;
	if (is(p, ']'))
		return 1;
	do {
		if (*n == MOST || !(out[*n] = text(p)))
			return 0;
		++*n;
	} while (is(p, ','));
	return is(p, ']');
}

/* descriptors is {"<uuid>":[0],"<uuid>":[]}: an option is a list. */
static int descriptors(char **p, struct setup *s)
{
	if (!is(p, '{'))
		return 0;
	if (is(p, '}'))
		return 1;
	do {
		if (s->n == MOST || !(s->fds[s->n].uuid = text(p)) || !is(p, ':') || !is(p, '['))
			return 0;
		s->fds[s->n].want = s->fds[s->n].fd = -1;
		if (!is(p, ']')) {
			s->fds[s->n].want = strtol(*p, p, 10);
			if (!is(p, ']'))
				return 0;
		}
		s->n++;
	} while (is(p, ','));
	return is(p, '}');
}

/* flags is what stands there of the system log, which this one does not write. */
static int flags(char **p)
{
	space(p);
	*p += strcspn(*p, ",}");
	return is(p, '}') || **p == ',' || **p == '}';
}

static int parse(char *p, struct setup *s)
{
	char *key = 0;

	if (!is(&p, '[') || !(key = text(&p)) || strcmp(key, "Setup") || !is(&p, ',') || !is(&p, '{'))
		return 0;
	do {
		int ok;

		if (!(key = text(&p)) || !is(&p, ':'))
			return 0;
		if (!strcmp(key, "cmdargs"))
			ok = texts(&p, s->arg, &s->args);
		else if (!strcmp(key, "env"))
			ok = texts(&p, s->env, &s->envs);
		else if (!strcmp(key, "id_to_fd_map"))
			ok = descriptors(&p, s);
		else if (!strcmp(key, "syslog_stdout"))
			ok = is(&p, '{') && flags(&p);
		else if (!strcmp(key, "redirect_stderr_to_stdout"))
			ok = (space(&p), p += strcspn(p, ",}"), 1);
		else
			ok = 0;
		if (!ok)
			return 0;
	} while (is(&p, ','));
	return is(&p, '}') && is(&p, ']') && s->args > 0;
}

static int listen_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 5))
		die(path);
	return fd;
}

/* receive takes one descriptor and its name; 0 when there are no more. */
static int receive(int from, struct setup *s)
{
	union {
		char b[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char uuid[UUID + 1] = "";
	struct iovec v = { uuid, UUID };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c;
	int fd, i;

	if (recvmsg(from, &m, 0) <= 0)
		return 0;
	c = CMSG_FIRSTHDR(&m);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
		_exit(1);
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	for (i = 0; i < s->n && strcmp(s->fds[i].uuid, uuid); i++)
		;
	if (i == s->n)
		_exit(1);
	if (s->fds[i].want >= 0 && s->fds[i].want != fd) {
		if (dup2(fd, s->fds[i].want) < 0)
			_exit(1);
		close(fd);
		fd = s->fds[i].want;
	}
	s->fds[i].fd = fd;
	return 1;
}

static void nothing(int signal)
{
	(void)signal;
}

/* name puts the numbers of descriptors in the place of their names. */
static void name(struct setup *s)
{
	int i, j;

	for (i = 0; i < s->args; i++)
		for (j = 0; j < s->n; j++) {
			size_t n = strlen(s->arg[i]);

			if (n >= UUID && !strcmp(s->arg[i] + n - UUID, s->fds[j].uuid))
				snprintf(s->arg[i] + n - UUID, UUID, "%d", s->fds[j].fd);
		}
}

static void program(struct setup *s, const sigset_t *mask)
{
	long fd, most = sysconf(_SC_OPEN_MAX);
	int i;

	for (fd = 3; fd < most && fd < 1 << 16; fd++) {
		for (i = 0; i < s->n && s->fds[i].fd != fd; i++)
			;
		if (i == s->n)
			close(fd);
	}
	setsid();
	signal(SIGCHLD, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	sigprocmask(SIG_SETMASK, mask, 0);
	execve(s->arg[0], s->arg, s->env);
	_exit(errno == ENOENT ? 127 : 126);
}

/* stay is the process that stays with one connection: it takes descriptors until it
 * is told to start the program, and tells how that ended. */
static void stay(struct setup *s, int comms, int fds, const char *path)
{
	int null = open("/dev/null", O_WRONLY), names = -1, i, status;
	sigset_t child, before;
	char text[64];
	pid_t pid;

	for (i = 0; i < 3; i++)
		dup2(null, i);
	if (null > 2)
		close(null);
	for (;;) {
		struct pollfd ready[2] = { { names < 0 ? fds : names, POLLIN, 0 }, { comms, POLLIN, 0 } };

		if (poll(ready, 2, -1) < 0)
			_exit(1);
		if (ready[0].revents && names < 0) {
			names = accept4(fds, 0, 0, 0);
		} else if (ready[0].revents) {
			if (!receive(names, s)) {
				close(names);
				names = -1;
			}
		} else {
			char *command = read_frame(comms);

			if (!command)
				_exit(1);
			if (!strcmp(command, "\"Exec\""))
				break;
			free(command);
		}
	}
	close(fds);
	if (names >= 0)
		close(names);
	unlink(path);
	name(s);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	signal(SIGCHLD, nothing);
	sigprocmask(SIG_BLOCK, &child, &before);
	pid = fork();
	if (pid < 0)
		_exit(1);
	if (!pid)
		program(s, &before);
	snprintf(text, sizeof(text), "[\"Execed\",%d]", pid);
	if (!write_frame(comms, text))
		_exit(0);
	for (i = 0; i < s->n; i++)
		close(s->fds[i].fd);
	while (!waitpid(pid, &status, WNOHANG)) {
		struct pollfd asked = { comms, POLLIN, 0 };
		char *command;

		if (ppoll(&asked, 1, 0, &before) < 0)
			continue; /* SIGCHLD */
		command = read_frame(comms);
		if (!command)
			_exit(1);
		if (!strcmp(command, "\"Dontwaitpid\""))
			_exit(0);
		free(command);
	}
	if (WIFSIGNALED(status))
		snprintf(text, sizeof(text), "[\"Finished\",[\"WSIGNALED\",%d]]", WTERMSIG(status));
	else
		snprintf(text, sizeof(text), "[\"Finished\",[\"WEXITED\",%d]]", WEXITSTATUS(status));
	write_frame(comms, text);
	_exit(0);
}

/* random_uuid is a name for a socket. */
static void random_uuid(char *out)
{
	int fd = open("/proc/sys/kernel/random/uuid", O_RDONLY);

	if (fd < 0 || !read_all(fd, out, UUID))
		die("uuid");
	out[UUID] = 0;
	close(fd);
}

static void serve(int sock)
{
	static struct setup s;
	char uuid[UUID + 1], path[128], answer[256];
	char *request = read_frame(sock);
	pid_t pid;
	int fds;

	memset(&s, 0, sizeof(s));
	if (!request || !parse(request, &s)) {
		fprintf(stderr, "forkexecd: a request that is none\n");
		free(request);
		close(sock);
		return;
	}
	random_uuid(uuid);
	snprintf(path, sizeof(path), "%s/fd_%s", fd_dir, uuid);
	fds = listen_at(path);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		pid = fork();
		if (pid)
			_exit(pid < 0);
		close(COMMANDS);
		close(ANSWERS);
		stay(&s, sock, fds, path);
	}
	while (waitpid(pid, 0, 0) < 0 && errno == EINTR)
		;
	close(fds);
	snprintf(answer, sizeof(answer), "[\"Setup_response\",{\"fd_sock_path\":\"%s\"}]", path);
	write_frame(sock, answer);
	close(sock);
	free(request);
}

/* command obeys the launcher, whose commands are for others. */
static void command(void)
{
	static char b[1 << 16];
	ssize_t i, n = read(COMMANDS, b, sizeof(b));

	if (n <= 0)
		_exit(0); /* nobody is left to tell */
	for (i = 0; i < n; i++)
		if (b[i] == '\n' && !write_all(ANSWERS, "{}\n", 3))
			_exit(0);
}

void forkexecd(void)
{
	struct pollfd ready[2] = { { COMMANDS, POLLIN, 0 }, { -1, POLLIN, 0 } };

	signal(SIGPIPE, SIG_IGN);
	fcntl(COMMANDS, F_SETFD, FD_CLOEXEC);
	fcntl(ANSWERS, F_SETFD, FD_CLOEXEC);
	mkdir("/var/run/nonpersistent", 0755);
	mkdir(fd_dir, 0755);
	mkdir("/var/xapi", 0755);
	mkdir("/var/xapi/forker", 0755);
	ready[1].fd = listen_at(main_path);
	for (;;) {
		if (poll(ready, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			die("poll");
		}
		if (ready[0].revents)
			command();
		if (ready[1].revents) {
			int sock = accept4(ready[1].fd, 0, 0, 0); /* as OCaml does */

			if (sock >= 0)
				serve(sock);
		}
	}
}
