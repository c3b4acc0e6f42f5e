//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The stream probe: what the threads of targets read and write on their stream
 * sockets, and their datagrams to the system log.
 *
 * Enter hooks note the call and send what a turn of direction completes; one
 * exit hook serves all calls that move bytes. Payload is read at exit: then the
 * kernel has just touched it, so it is in memory.
 */
#define DT_PROBE DT_STREAM
#include "dt_stream.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline void dt_head(struct dt_hdr *h, __u16 kind, __u16 flags, __u8 component, __u32 tgid, __u32 tid)
{
	h->kind = kind;
	h->flags = flags;
	h->component = component;
	h->tgid = tgid;
	h->tid = tid;
}

static __always_inline __u16 dt_more(const struct dt_conn *c, __u8 dir)
{
	return c->told == dir ? DT_F_MORE : 0;
}

/* Sends what was only counted in bulk. */
static __always_inline void dt_flush_bulk(void *ctx, const struct dt_conn_key *key, struct dt_conn *c, __u16 flags)
{
	struct dt_data d = {};

	dt_head(&d.h, DT_DATA, DT_F_CUT | DT_F_MORE | flags, c->component, key->tgid, c->bulk_tid);
	d.born = c->born;
	d.ino = c->ino;
	d.first = c->bulk_first;
	d.last = c->bulk_last;
	d.bytes = c->bulk_bytes;
	d.fd = key->fd;
	d.calls = c->bulk_calls;
	d.dir = c->dir;
	c->bulk_bytes = 0;
	c->bulk_calls = 0;
	c->told = d.dir;
	dt_send(ctx, &d.h, sizeof(d));
}

/* Sends the run of small pieces that waits. */
static __always_inline void dt_flush_run(void *ctx, const struct dt_conn_key *key, struct dt_conn *c, __u16 flags)
{
	struct dt_gather *g = bpf_map_lookup_elem(&dt_gathers, key);
	__u64 len;

	c->gather = 0;
	if (!g)
		return;
	len = g->d.head_len;
	DT_KEEP(len);
	if (len > DT_GATHER)
		return;
	g->d.h.flags |= flags | dt_more(c, g->d.dir);
	c->told = g->d.dir;
	dt_send(ctx, &g->d.h, sizeof(g->d) + len);
}

static __noinline int dt_flush(void *ctx, const struct dt_conn_key *key, struct dt_conn *c)
{
	if (!ctx || !key || !c)
		return 0;
	if (c->dir == DT_OUT)
		dt_tell_time(ctx);
	if (c->bulk_calls)
		dt_flush_bulk(ctx, key, c, 0);
	if (c->gather)
		dt_flush_run(ctx, key, c, 0);
	return 0;
}

/* ---- sockets become known and are forgotten ---- */

static __always_inline void dt_send_open(void *ctx, const struct dt_conn_key *key, const struct dt_conn *c, __u32 tid,
					 __u16 how, __s32 listen_fd, __u64 addr)
{
	struct dt_sockaddr a = {};
	struct dt_open o = {};

	dt_head(&o.h, DT_OPEN, 0, c->component, key->tgid, tid);
	o.born = c->born;
	o.ino = c->ino;
	o.fd = key->fd;
	o.listen_fd = listen_fd;
	o.how = how;
	if (addr && !dt_read_user(&a, sizeof(a), addr)) {
		o.family = a.family;
		if (a.family == AF_INET || a.family == AF_INET6)
			o.peer_port = (__u16)a.port[0] << 8 | a.port[1];
		if (a.family == AF_INET) {
			o.peer[10] = 0xff;
			o.peer[11] = 0xff;
			__builtin_memcpy(&o.peer[12], a.addr4, sizeof(a.addr4));
		}
		if (a.family == AF_INET6)
			__builtin_memcpy(o.peer, a.addr6, sizeof(a.addr6));
	}
	if (how == DT_ACCEPTED && !o.peer_port)
		dt_peer_facts(&o, key->fd);
	dt_send(ctx, &o.h, sizeof(o));
}

/* The socket at key is known from now on. */
static __always_inline struct dt_conn *dt_know(const struct dt_conn_key *key, __u8 component, __u8 flags)
{
	struct dt_conn *old = bpf_map_lookup_elem(&dt_conns, key);
	struct dt_conn c = {};

	if (old && !(old->flags & DT_C_PLAIN))
		dt_lost(DT_LOSS_REUSED);
	c.born = bpf_ktime_get_ns();
	c.component = component;
	c.flags = flags;
	if (!(flags & DT_C_PLAIN))
		c.ino = dt_socket_ino(key->fd);
	if (bpf_map_update_elem(&dt_conns, key, &c, BPF_ANY)) {
		dt_lost(DT_LOSS_CONNS);
		return 0;
	}
	return bpf_map_lookup_elem(&dt_conns, key);
}

static __always_inline void dt_forget(void *ctx, __s32 fd)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct dt_conn_key key = { .tgid = id >> 32, .fd = fd };
	struct dt_target *t = dt_target(key.tgid, DT_WATCH_STREAM);
	struct dt_close d = {};
	struct dt_conn *c;

	if (!t)
		return;
	c = bpf_map_lookup_elem(&dt_conns, &key);
	if (!c)
		return;
	if (!(c->flags & DT_C_PLAIN) && c->born >= t->since) {
		dt_flush(ctx, &key, c);
		dt_head(&d.h, DT_CLOSE, 0, c->component, key.tgid, id);
		d.born = c->born;
		d.bytes_in = c->bytes_in;
		d.bytes_out = c->bytes_out;
		d.fd = fd;
		dt_send(ctx, &d.h, sizeof(d));
	}
	/* Now, before the kernel gives the number to another thread. */
	bpf_map_delete_elem(&dt_gathers, &key);
	bpf_map_delete_elem(&dt_conns, &key);
}

/* ---- enter ---- */

static __always_inline struct dt_inflight *dt_begin(__u64 id, const struct dt_target *t, __s32 nr, __u8 op, __s32 fd,
						    __u64 buf, __u64 len)
{
	struct dt_inflight *f = bpf_map_lookup_elem(&dt_inflight, &id);

	if (!f) {
		struct dt_inflight new = {};

		bpf_map_update_elem(&dt_inflight, &id, &new, BPF_ANY);
		f = bpf_map_lookup_elem(&dt_inflight, &id);
		if (!f) {
			dt_lost(DT_LOSS_INFLIGHT);
			return 0;
		}
	}
	f->buf = buf;
	f->len = len;
	f->msg = 0;
	f->fd = fd;
	f->nr = nr;
	f->component = t->component;
	f->noenter = 0;
	f->op = op;
	return f;
}

/* Log lines begin with their priority: '<' and a digit. */
static __always_inline int dt_is_log(__u64 base)
{
	__u8 b[2] = {};

	if (dt_read_user(b, sizeof(b), base))
		return 0;
	return b[0] == '<' && b[1] >= '0' && b[1] <= '9';
}

static __always_inline int dt_enter(struct dt_sys_enter *ctx, __u8 op, __u64 buf, __u64 len)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct dt_conn_key key = { .tgid = id >> 32, .fd = (__s32)ctx->arg[0] };
	struct dt_target *t = dt_target(key.tgid, DT_WATCH_STREAM | DT_WATCH_LOG);
	__u8 dir = op == DT_OP_READ || op == DT_OP_READV ? DT_IN : DT_OUT;
	struct dt_inflight *f;
	struct dt_conn *c = 0;
	__u64 base = buf;

	if (!t)
		return 0;
	if (t->watch & DT_WATCH_STREAM)
		c = bpf_map_lookup_elem(&dt_conns, &key);
	if (c) {
		if (c->flags & DT_C_PLAIN || c->born < t->since)
			return 0;
		if ((c->gather && c->gather != dir) || (c->bulk_calls && c->dir != dir))
			dt_flush(ctx, &key, c);
		f = dt_begin(id, t, ctx->nr, op, key.fd, buf, len);
		if (!f)
			return 0;
		f->born = c->born;
		f->first = dir == DT_OUT ? bpf_ktime_get_ns() : 0;
		return 0;
	}
	if (dir == DT_IN || !(t->watch & DT_WATCH_LOG))
		return 0;
	if (op == DT_OP_WRITEV && dt_read_user(&base, sizeof(base), buf))
		return 0;
	if (dt_is_log(base))
		dt_begin(id, t, ctx->nr, op == DT_OP_WRITEV ? DT_OP_LOGV : DT_OP_LOG, key.fd, buf, len);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_read")
int dt_e_read(struct dt_sys_enter *ctx)
{
	return dt_enter(ctx, DT_OP_READ, ctx->arg[1], ctx->arg[2]);
}

SEC("tracepoint/syscalls/sys_enter_write")
int dt_e_write(struct dt_sys_enter *ctx)
{
	return dt_enter(ctx, DT_OP_WRITE, ctx->arg[1], ctx->arg[2]);
}

SEC("tracepoint/syscalls/sys_enter_readv")
int dt_e_readv(struct dt_sys_enter *ctx)
{
	return dt_enter(ctx, DT_OP_READV, ctx->arg[1], ctx->arg[2]);
}

SEC("tracepoint/syscalls/sys_enter_writev")
int dt_e_writev(struct dt_sys_enter *ctx)
{
	return dt_enter(ctx, DT_OP_WRITEV, ctx->arg[1], ctx->arg[2]);
}

SEC("tracepoint/syscalls/sys_enter_recvfrom")
int dt_e_recvfrom(struct dt_sys_enter *ctx)
{
	if (ctx->arg[3] & MSG_PEEK) /* the bytes come again */
		return 0;
	return dt_enter(ctx, DT_OP_READ, ctx->arg[1], ctx->arg[2]);
}

static __always_inline int dt_enter_msg(struct dt_sys_enter *ctx, __u8 op)
{
	struct dt_msghdr m = {};
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!dt_target(tgid, DT_WATCH_STREAM | DT_WATCH_LOG))
		return 0;
	if (dt_read_user(&m, sizeof(m), ctx->arg[1])) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	return dt_enter(ctx, op, m.iov, m.iovlen);
}

SEC("tracepoint/syscalls/sys_enter_recvmsg")
int dt_e_recvmsg(struct dt_sys_enter *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct dt_inflight *f;

	if (ctx->arg[2] & MSG_PEEK)
		return 0;
	dt_enter_msg(ctx, DT_OP_READV);
	f = bpf_map_lookup_elem(&dt_inflight, &id);
	if (f && f->op == DT_OP_READV)
		f->msg = ctx->arg[1]; /* for what came with the bytes */
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_sendmsg")
int dt_e_sendmsg(struct dt_sys_enter *ctx)
{
	return dt_enter_msg(ctx, DT_OP_WRITEV);
}

SEC("tracepoint/syscalls/sys_enter_close")
int dt_e_close(struct dt_sys_enter *ctx)
{
	dt_forget(ctx, ctx->arg[0]);
	return 0;
}

/* dup2 and dup3 close the number that they give. */
SEC("tracepoint/syscalls/sys_enter_dup2")
int dt_e_dup(struct dt_sys_enter *ctx)
{
	if ((__u32)ctx->arg[0] != (__u32)ctx->arg[1])
		dt_forget(ctx, ctx->arg[1]);
	return 0;
}

/* Which sockets are in the range cannot be told without a loop: all become unknown. */
SEC("tracepoint/syscalls/sys_enter_close_range")
int dt_e_closerange(struct dt_sys_enter *ctx)
{
	struct dt_target *t = dt_target(bpf_get_current_pid_tgid() >> 32, DT_WATCH_STREAM);

	if (!t || ctx->arg[2] & CLOSE_RANGE_CLOEXEC)
		return 0;
	t->since = bpf_ktime_get_ns();
	dt_lost(DT_LOSS_FORGOT);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_shutdown")
int dt_e_shutdown(struct dt_sys_enter *ctx)
{
	struct dt_conn_key key = { .tgid = bpf_get_current_pid_tgid() >> 32, .fd = (__s32)ctx->arg[0] };
	struct dt_target *t = dt_target(key.tgid, DT_WATCH_STREAM);
	struct dt_conn *c;

	if (!t)
		return 0;
	c = bpf_map_lookup_elem(&dt_conns, &key);
	if (c && c->born >= t->since)
		dt_flush(ctx, &key, c);
	return 0;
}

static __always_inline int dt_enter_other(struct dt_sys_enter *ctx, __u8 op, __s32 fd, __u64 buf)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct dt_target *t = dt_target(id >> 32, DT_WATCH_STREAM);

	if (t)
		dt_begin(id, t, ctx->nr, op, fd, buf, 0);
	return 0;
}

/* accept and accept4 */
SEC("tracepoint/syscalls/sys_enter_accept")
int dt_e_accept(struct dt_sys_enter *ctx)
{
	return dt_enter_other(ctx, DT_OP_ACCEPT, ctx->arg[0], ctx->arg[1]);
}

SEC("tracepoint/syscalls/sys_enter_connect")
int dt_e_connect(struct dt_sys_enter *ctx)
{
	return dt_enter_other(ctx, DT_OP_CONNECT, ctx->arg[0], ctx->arg[1]);
}

SEC("tracepoint/syscalls/sys_enter_socket")
int dt_e_socket(struct dt_sys_enter *ctx)
{
	__u32 family = ctx->arg[0];

	if ((ctx->arg[1] & SOCK_TYPE_MASK) != SOCK_STREAM)
		return 0;
	if (family != AF_UNIX && family != AF_INET && family != AF_INET6)
		return 0;
	return dt_enter_other(ctx, DT_OP_SOCKET, -1, 0);
}

SEC("tracepoint/syscalls/sys_enter_socketpair")
int dt_e_pair(struct dt_sys_enter *ctx)
{
	if ((ctx->arg[1] & SOCK_TYPE_MASK) != SOCK_STREAM)
		return 0;
	return dt_enter_other(ctx, DT_OP_PAIR, -1, ctx->arg[3]);
}

/* ---- exit ---- */

/* The call that this thread comes back from, if it is a watched one. It becomes idle. */
static __always_inline struct dt_inflight *dt_end(const struct dt_sys_exit *ctx, __u64 id, __u8 *op)
{
	struct dt_inflight *f = bpf_map_lookup_elem(&dt_inflight, &id);

	if (!f || f->op == DT_OP_NONE)
		return 0;
	*op = f->op;
	f->op = DT_OP_NONE;
	return f->nr == ctx->nr ? f : 0;
}

SEC("tracepoint/syscalls/sys_exit_accept")
int dt_x_accept(struct dt_sys_exit *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u8 op = 0;
	struct dt_inflight *f = dt_end(ctx, id, &op);
	struct dt_conn_key key = { .tgid = id >> 32, .fd = (__s32)ctx->ret };
	struct dt_conn *c;

	if (!f || op != DT_OP_ACCEPT || ctx->ret < 0)
		return 0;
	c = dt_know(&key, f->component, 0);
	if (c)
		dt_send_open(ctx, &key, c, id, DT_ACCEPTED, f->fd, f->buf);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_connect")
int dt_x_connect(struct dt_sys_exit *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u8 op = 0;
	struct dt_inflight *f = dt_end(ctx, id, &op);
	struct dt_conn_key key = { .tgid = id >> 32 };
	struct dt_conn *c;

	if (!f || op != DT_OP_CONNECT || (ctx->ret && ctx->ret != -EINPROGRESS))
		return 0;
	key.fd = f->fd;
	c = bpf_map_lookup_elem(&dt_conns, &key);
	if (!c || !(c->flags & DT_C_PLAIN)) /* no stream socket, or connected before */
		return 0;
	c = dt_know(&key, f->component, 0);
	if (c)
		dt_send_open(ctx, &key, c, id, DT_CONNECTED, -1, f->buf);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_socket")
int dt_x_socket(struct dt_sys_exit *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u8 op = 0;
	struct dt_inflight *f = dt_end(ctx, id, &op);
	struct dt_conn_key key = { .tgid = id >> 32, .fd = (__s32)ctx->ret };

	if (f && op == DT_OP_SOCKET && ctx->ret >= 0)
		dt_know(&key, f->component, DT_C_PLAIN);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_socketpair")
int dt_x_pair(struct dt_sys_exit *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u8 op = 0;
	struct dt_inflight *f = dt_end(ctx, id, &op);
	struct dt_conn_key key = { .tgid = id >> 32 };
	__s32 fds[2] = {};
	struct dt_conn *c;

	if (!f || op != DT_OP_PAIR || ctx->ret)
		return 0;
	if (dt_read_user(fds, sizeof(fds), f->buf)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	key.fd = fds[0];
	c = dt_know(&key, f->component, 0);
	if (c)
		dt_send_open(ctx, &key, c, id, DT_PAIRED, -1, 0);
	key.fd = fds[1];
	c = dt_know(&key, f->component, 0);
	if (c)
		dt_send_open(ctx, &key, c, id, DT_PAIRED, -1, 0);
	return 0;
}

/*
 * A socket that another process passed on comes with a message. The toolstack
 * passes one at a time; what it passes besides sockets is not watched, and neither
 * are they where the kernel does not tell what is a socket.
 */
SEC("tracepoint/syscalls/sys_exit_recvmsg")
int dt_x_rights(struct dt_sys_exit *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct dt_inflight *f = bpf_map_lookup_elem(&dt_inflight, &id);
	struct dt_conn_key key = { .tgid = id >> 32 };
	struct dt_rights r = {};
	struct dt_msghdr m = {};
	struct dt_conn *c;
	__u64 msg;

	if (!f || !f->msg)
		return 0;
	msg = f->msg;
	f->msg = 0;
	if (f->nr != ctx->nr || ctx->ret < 0)
		return 0;
	if (dt_read_user(&m, sizeof(m), msg)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	if (!m.control || m.controllen < sizeof(r) - sizeof(r.pad))
		return 0;
	if (dt_read_user(&r, sizeof(r) - sizeof(r.pad), m.control)) {
		dt_lost(DT_LOSS_FAULT);
		return 0;
	}
	if (r.level != SOL_SOCKET || r.type != SCM_RIGHTS || !dt_socket_ino(r.fd))
		return 0;
	if (r.len >= sizeof(r))
		dt_lost(DT_LOSS_CONNS); /* more than one */
	key.fd = r.fd;
	c = dt_know(&key, f->component, 0);
	if (c)
		dt_send_open(ctx, &key, c, id, DT_PASSED, -1, 0);
	return 0;
}

/* ---- bytes ---- */

/*
 * Copies m->left bytes from the vectors to dst, to where m->off says. A vector
 * gives max bytes at most, so dst has room for cap + max.
 */
#define DT_COPY_VECTOR(i, cap, max)                                         \
	DT_RELOAD();                                                        \
	if (m->left) {                                                      \
		__u64 n = m->iov[i].len;                                    \
		__u64 left = m->left;                                       \
		__u64 off = m->off;                                         \
                                                                            \
		if (n > left)                                               \
			n = left;                                           \
		if (n > (max))                                              \
			n = (max);                                          \
		DT_KEEP(n);                                                 \
		DT_KEEP(off);                                               \
		if (n > (max) || off > (cap))                               \
			return;                                             \
		if (n && dt_read_user(dst + off, n, m->iov[i].base)) {      \
			dt_lost(DT_LOSS_FAULT);                             \
			return;                                             \
		}                                                           \
		m->off = off + n;                                           \
		m->left = left - n;                                         \
	}

static __always_inline void dt_copy_small(__u8 *dst, struct dt_moved *m)
{
	DT_COPY_VECTOR(0, DT_GATHER, DT_SMALL_OUT)
	DT_COPY_VECTOR(1, DT_GATHER, DT_SMALL_OUT)
	DT_COPY_VECTOR(2, DT_GATHER, DT_SMALL_OUT)
	DT_COPY_VECTOR(3, DT_GATHER, DT_SMALL_OUT)
}

static __always_inline void dt_copy_log(__u8 *dst, struct dt_moved *m)
{
	DT_COPY_VECTOR(0, 0, DT_LOG_HEAD)
	DT_COPY_VECTOR(1, DT_LOG_HEAD, DT_LOG_HEAD)
	DT_COPY_VECTOR(2, DT_LOG_HEAD, DT_LOG_HEAD)
	DT_COPY_VECTOR(3, DT_LOG_HEAD, DT_LOG_HEAD)
}

static __always_inline void dt_copy_head(__u8 *dst, struct dt_moved *m)
{
	DT_COPY_VECTOR(0, 0, DT_HEAD_SWITCH)
	DT_COPY_VECTOR(1, DT_HEAD_SWITCH, DT_HEAD)
	DT_COPY_VECTOR(2, DT_HEAD_SWITCH, DT_HEAD)
	DT_COPY_VECTOR(3, DT_HEAD_SWITCH, DT_HEAD)
}

/* The requests that a client of message-switch makes. */
static __always_inline int dt_is_switch(const struct dt_moved *m)
{
	__u64 w[2] = {};
	__u64 b;

	if (m->iov[0].len < 9 || dt_read_user(&w[0], sizeof(w[0]), m->iov[0].base))
		return 0;
	if (w[0] == DT_W('G', 'E', 'T', ' ', '/', 'a', 'c', 'k'))
		return 1;
	if (m->iov[0].len < 16 || dt_read_user(&w[1], sizeof(w[1]), m->iov[0].base + 8))
		return 0;
	b = w[1];
	if (w[0] == DT_W('P', 'O', 'S', 'T', ' ', '/', 't', 'r'))
		return (b & 0xffffffffffff) == DT_W('a', 'n', 's', 'f', 'e', 'r', 0, 0);
	if (w[0] == DT_W('P', 'O', 'S', 'T', ' ', '/', 'r', 'e'))
		return (b & 0xffffffffff) == DT_W('q', 'u', 'e', 's', 't', 0, 0, 0) ||
		       (b & 0xffffffffffff) == DT_W('s', 'p', 'o', 'n', 's', 'e', 0, 0);
	if (w[0] == DT_W('G', 'E', 'T', ' ', '/', 'l', 'o', 'g'))
		return (b & 0xffff) == DT_W('i', 'n', 0, 0, 0, 0, 0, 0);
	if (w[0] == DT_W('G', 'E', 'T', ' ', '/', 'p', 'e', 'r'))
		return (b & 0xffffffffffffff) == DT_W('s', 'i', 's', 't', 'e', 'n', 't', 0);
	if (w[0] == DT_W('G', 'E', 'T', ' ', '/', 't', 'r', 'a'))
		return (b & 0xffffffffffff) == DT_W('n', 's', 'i', 'e', 'n', 't', 0, 0);
	return 0;
}

/* The vectors of the call; m->asked is how many bytes it asked for. */
static __always_inline void dt_vectors(const struct dt_inflight *f, __u8 op, struct dt_moved *m)
{
	__u64 n = f->len;

	__builtin_memset(m->iov, 0, sizeof(m->iov));
	if (op == DT_OP_READ || op == DT_OP_WRITE || op == DT_OP_LOG) {
		m->iov[0].base = f->buf;
		m->iov[0].len = n;
		m->asked = n;
		return;
	}
	m->asked = ~0ULL;
	if (n > DT_IOVS) {
		n = DT_IOVS;
		dt_lost(DT_LOSS_IOVEC);
	}
	n *= sizeof(struct dt_iovec);
	if (n && dt_read_user(m->iov, n, f->buf)) {
		dt_lost(DT_LOSS_FAULT);
		return;
	}
	if (f->len <= DT_IOVS)
		m->asked = m->iov[0].len + m->iov[1].len + m->iov[2].len + m->iov[3].len;
}

/*
 * Finds where the last m->left bytes of the call lie: m->off is their address.
 * They are as many as one vector holds at most.
 */
static __always_inline void dt_tail_of(struct dt_moved *m)
{
	__u64 moved = m->bytes;
	__u64 base;

	if (moved <= m->iov[0].len) {
		base = m->iov[0].base;
		goto found;
	}
	moved -= m->iov[0].len;
	if (moved <= m->iov[1].len) {
		base = m->iov[1].base;
		goto found;
	}
	moved -= m->iov[1].len;
	if (moved <= m->iov[2].len) {
		base = m->iov[2].base;
		goto found;
	}
	moved -= m->iov[2].len;
	if (moved <= m->iov[3].len) {
		base = m->iov[3].base;
		goto found;
	}
	m->left = 0; /* beyond the vectors that were looked at */
	return;
found:
	if (m->left > moved)
		m->left = moved;
	m->off = base + moved - m->left;
}

static __always_inline void dt_send_log(struct dt_sys_exit *ctx, const struct dt_inflight *f, struct dt_scratch *s, __u8 op)
{
	struct dt_log *l = (struct dt_log *)&s->d;
	struct dt_moved *m = &s->m;
	__u64 n = ctx->ret;

	if (ctx->ret <= 0)
		return;
	dt_vectors(f, op, m);
	m->off = 0;
	m->left = n > DT_LOG_HEAD ? DT_LOG_HEAD : n;
	dt_copy_log((__u8 *)l + sizeof(*l), m);
	DT_RELOAD();
	n = m->off;
	DT_KEEP(n);
	if (n > DT_LOG_HEAD)
		return;
	dt_head(&l->h, DT_LOG, ctx->ret > (__s64)n ? DT_F_CUT : 0, f->component, m->id >> 32, m->id);
	l->bytes = ctx->ret;
	l->head_len = n;
	l->pad = 0;
	dt_tell_time(ctx);
	dt_send(ctx, &l->h, sizeof(*l) + n);
}

/* The gather buffer of a socket, emptied when nothing waits in it. */
static __always_inline struct dt_gather *dt_run(const struct dt_moved *m, const struct dt_conn *c,
						const struct dt_conn_key *key)
{
	struct dt_gather *g = bpf_map_lookup_elem(&dt_gathers, key);

	if (!g) {
		__u32 k = 0;
		struct dt_gather *zero = bpf_map_lookup_elem(&dt_gather_zero, &k);

		if (!zero)
			return 0;
		bpf_map_update_elem(&dt_gathers, key, zero, BPF_ANY);
		g = bpf_map_lookup_elem(&dt_gathers, key);
		if (!g) {
			dt_lost(DT_LOSS_GATHERS);
			return 0;
		}
	}
	if (!c->gather) {
		dt_head(&g->d.h, DT_DATA, 0, c->component, key->tgid, m->id);
		g->d.born = c->born;
		g->d.ino = c->ino;
		g->d.first = m->first;
		g->d.bytes = 0;
		g->d.fd = key->fd;
		g->d.calls = 0;
		g->d.head_len = 0;
		g->d.dir = m->dir;
	}
	return g;
}

/* Adds a small piece to the run of its socket; false if there is no room for one. */
static __always_inline int dt_small(struct dt_sys_exit *ctx, struct dt_moved *m, struct dt_conn *c,
				    const struct dt_conn_key *key)
{
	struct dt_gather *g = dt_run(m, c, key);
	__u64 len, end;
	__u8 *b;

	if (!g)
		return 0;
	len = g->d.head_len;
	if (c->gather && len + m->bytes > DT_GATHER) {
		dt_flush(ctx, key, c);
		g = dt_run(m, c, key);
		if (!g)
			return 0;
	}
	m->off = g->d.head_len;
	m->left = m->bytes;
	dt_copy_small(g->buf, m);
	DT_RELOAD();
	end = m->off;
	g->d.h.flags |= m->flags;
	if (m->left)
		g->d.h.flags |= DT_F_CUT;
	g->d.last = m->last;
	g->d.bytes += m->bytes;
	g->d.calls += 1;
	g->d.head_len = end;
	c->gather = m->dir;
	if (c->flags & DT_C_BODY) {
		/*
		 * All of a short body: whoever asked for it may do nothing more with
		 * this socket for long, and the record would wait as long.
		 */
		c->flags &= ~DT_C_BODY;
		dt_flush(ctx, key, c);
		return 1;
	}
	if (end < 4)
		return 1;
	DT_KEEP(end);
	if (end < DT_GATHER) {
		b = g->buf + end - 4;
		if (b[0] != '\r' || b[1] != '\n' || b[2] != '\r' || b[3] != '\n')
			return 1;
		if (m->dir == DT_IN)
			c->flags |= DT_C_BODY;
	}
	dt_flush(ctx, key, c);
	return 1;
}

/* Sends a large piece at once. */
static __always_inline void dt_large(struct dt_sys_exit *ctx, struct dt_scratch *s, struct dt_conn *c,
				     const struct dt_conn_key *key)
{
	struct dt_moved *m = &s->m;
	__u64 head, tail;

	m->off = 0;
	m->left = c->flags & DT_C_SWITCH ? DT_HEAD_SWITCH : DT_HEAD;
	if (m->left > m->bytes)
		m->left = m->bytes;
	dt_copy_head(s->buf, m);
	DT_RELOAD();
	m->head = m->off;
	m->tail = 0;
	if (!m->left && m->off < m->bytes) {
		m->left = m->bytes - m->off;
		if (m->left > DT_TAIL)
			m->left = DT_TAIL;
		dt_tail_of(m);
		DT_RELOAD();
		head = m->head;
		tail = m->left;
		DT_KEEP(head);
		DT_KEEP(tail);
		if (head > DT_HEAD_SWITCH || tail > DT_TAIL)
			return;
		if (tail && !dt_read_user(s->buf + head, tail, m->off))
			m->tail = m->left;
		else if (tail)
			dt_lost(DT_LOSS_FAULT);
	}
	DT_RELOAD();
	s->d.head_len = m->head;
	s->d.tail_len = m->tail;
	head = m->head + m->tail;
	DT_KEEP(head);
	if (head > DT_HEAD_SWITCH + DT_TAIL)
		return;
	dt_head(&s->d.h, DT_DATA, m->flags | dt_more(c, m->dir) | (head < m->bytes ? DT_F_CUT : 0), c->component, key->tgid,
		m->id);
	s->d.born = c->born;
	s->d.ino = c->ino;
	s->d.first = m->first;
	s->d.last = m->last;
	s->d.bytes = m->bytes;
	s->d.fd = key->fd;
	s->d.calls = 1;
	s->d.dir = m->dir;
	c->told = m->dir;
	if (m->dir == DT_OUT)
		dt_tell_time(ctx);
	dt_send(ctx, &s->d.h, sizeof(s->d) + head);
}

/* The other side closed. What waits goes out first. */
static __always_inline void dt_eof(struct dt_sys_exit *ctx, const struct dt_moved *m, struct dt_conn *c,
				   const struct dt_conn_key *key)
{
	struct dt_data d = {};

	if (c->flags & DT_C_EOF)
		return;
	c->flags |= DT_C_EOF;
	dt_flush(ctx, key, c);
	dt_head(&d.h, DT_DATA, DT_F_EOF | m->flags | dt_more(c, DT_IN), c->component, key->tgid, m->id);
	d.born = c->born;
	d.ino = c->ino;
	d.first = m->last;
	d.last = m->last;
	d.fd = key->fd;
	d.calls = 1;
	d.dir = DT_IN;
	c->told = DT_IN;
	dt_send(ctx, &d.h, sizeof(d));
}

/* Exit of every call that moves bytes. */
SEC("tracepoint/syscalls/sys_exit_read")
int dt_x_moved(struct dt_sys_exit *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u8 op = 0;
	struct dt_inflight *f = dt_end(ctx, id, &op);
	struct dt_conn_key key = { .tgid = id >> 32 };
	struct dt_scratch *s;
	struct dt_moved *m;
	struct dt_conn *c;
	__u32 k = 0;
	__u64 before;

	if (!f || ctx->ret < 0)
		return 0;
	s = bpf_map_lookup_elem(&dt_scratch, &k);
	if (!s)
		return 0;
	m = &s->m;
	m->id = id;
	if (op == DT_OP_LOG || op == DT_OP_LOGV) {
		dt_send_log(ctx, f, s, op);
		return 0;
	}
	key.fd = f->fd;
	c = bpf_map_lookup_elem(&dt_conns, &key);
	if (!c || c->born != f->born) {
		if (ctx->ret)
			dt_lost(DT_LOSS_STALE);
		return 0;
	}
	m->bytes = ctx->ret;
	m->last = bpf_ktime_get_ns();
	m->dir = op == DT_OP_READ || op == DT_OP_READV ? DT_IN : DT_OUT;
	m->first = f->first ? f->first : m->last;
	m->flags = 0;
	if (f->noenter) {
		m->flags = DT_F_NOENTER;
		dt_lost(DT_LOSS_ENTER);
	}
	if (c->flags & DT_C_NEW) {
		c->flags &= ~DT_C_NEW;
		dt_send_open(ctx, &key, c, id, DT_SEEDED, -1, 0);
	}
	if (!m->bytes) {
		if (m->dir == DT_IN && f->len)
			dt_eof(ctx, m, c, &key);
		return 0;
	}
	/* Another thread may have moved bytes the other way meanwhile. */
	if ((c->gather && c->gather != m->dir) || (c->bulk_calls && c->dir != m->dir))
		dt_flush(ctx, &key, c);
	dt_vectors(f, op, m);
	if (m->dir == DT_OUT && c->dir != DT_OUT && !(c->flags & DT_C_SWITCH) && dt_is_switch(m))
		c->flags |= DT_C_SWITCH;
	if (c->dir != m->dir) {
		c->dir = m->dir;
		c->run = 0;
		c->flags &= ~DT_C_BODY;
	}
	m->before = c->run;
	c->run += m->bytes;
	if (m->dir == DT_IN)
		c->bytes_in += m->bytes;
	else
		c->bytes_out += m->bytes;

	if (m->asked <= (m->dir == DT_IN ? DT_SMALL_IN : DT_SMALL_OUT) && dt_small(ctx, m, c, &key))
		return 0;
	DT_RELOAD();
	before = m->before;
	if (before < DT_BULK || c->gather)
		dt_flush(ctx, &key, c);
	if (before < DT_BULK) {
		dt_large(ctx, s, c, &key);
		return 0;
	}
	if (!c->bulk_calls) {
		c->bulk_first = m->first;
		c->bulk_tid = m->id;
	}
	c->bulk_bytes += m->bytes;
	c->bulk_last = m->last;
	c->bulk_calls += 1;
	return 0;
}

/* A killed thread comes back from no call. */
SEC("tracepoint/sched/sched_process_exit")
int dt_s_exit(void *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&dt_inflight, &id);
	return 0;
}

/* ---- where programs of system calls do not keep the CPU ---- */

DT_TABLE(dt_s_calls, DT_CALLS);
DT_TABLE(dt_s_rets, 2 * DT_CALLS);
DT_DISPATCH(dt_s_call, "sys_enter", dt_s_calls, 0)
DT_DISPATCH(dt_s_ret, "sys_exit", dt_s_rets, 0)
DT_DISPATCH(dt_s_ret2, "sys_exit", dt_s_rets, DT_CALLS) /* the second program of a call */
