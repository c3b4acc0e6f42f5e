package score

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xenserver/dtagent/testenv"
	"github.com/xenserver/dtagent/testenv/client"
)

// mix is the load: callers who do in random order what XAPI's callers do. Each
// has a VM of its own, every other one of which is at home on the second host.
type mix struct {
	pool    *testenv.Pool
	session string
	traced  bool    // every call carries a trace context of its own
	rate    float64 // calls a second of all together; 0: no limit
	start   time.Time

	made   atomic.Int64
	traces atomic.Uint64
	mu     sync.Mutex
	kinds  map[string]int // calls made, by kind
}

// share of the kinds of work, of 100.
var work = []struct {
	name  string
	share int
	do    func(*caller, context.Context) error
}{
	{"look", 40, (*caller).look},
	{"start and shut down", 12, (*caller).cycle},
	{"the same, asynchronously", 12, (*caller).asyncCycle},
	{"xe", 10, (*caller).xe},
	{"fail", 14, (*caller).fail},
	{"cut off", 12, (*caller).cut},
}

// caller is one of them, with a connection to each listener that it keeps.
type caller struct {
	*mix
	vm   testenv.VM
	rand *rand.Rand
	kept []*client.Client
}

// run makes the load until no call is left of count or length is over; 0 is no
// limit. What has been begun is brought to its end.
func (m *mix) run(ctx context.Context, callers, count int, length time.Duration) error {
	m.start, m.kinds = time.Now(), map[string]int{}
	over := func() bool {
		return ctx.Err() != nil || count > 0 && m.made.Load() >= int64(count) || length > 0 && time.Since(m.start) >= length
	}
	errs := make([]error, callers)
	var group sync.WaitGroup
	for i := range callers {
		c := &caller{mix: m, vm: m.pool.VMs()[i], rand: rand.New(rand.NewPCG(1, uint64(i)))}
		group.Go(func() {
			defer c.close()
			for !over() {
				n := c.rand.IntN(100)
				for _, w := range work {
					if n -= w.share; n < 0 {
						m.mu.Lock()
						m.kinds[w.name]++
						m.mu.Unlock()
						if err := w.do(c, ctx); err != nil {
							errs[i] = fmt.Errorf("%s: %w", w.name, err)
							return
						}
						break
					}
				}
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func (c *caller) close() {
	for _, k := range c.kept {
		k.Close()
	}
}

// pace waits until the next call may be made.
func (m *mix) pace(ctx context.Context) {
	n := m.made.Add(1)
	if m.rate <= 0 {
		return
	}
	d := time.Until(m.start.Add(time.Duration(float64(n) / m.rate * float64(time.Second))))
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// traceparent is the header of the next call, "" if calls have none.
func (m *mix) traceparent() string {
	if !m.traced {
		return ""
	}
	n := m.traces.Add(1)
	return fmt.Sprintf("00-%032x-%016x-01", 0xacc0000000000+n, 0xacc000000000+n)
}

// to returns a connection to one of the pool's listeners, which is kept.
func (c *caller) to(member bool, transport string, shape client.Shape) *client.Client {
	d := c.pool.Coordinator
	if member {
		d = c.pool.Member
	}
	k := dial(d, transport, client.Options{Shape: shape, KeepAlive: c.rand.IntN(3) > 0})
	c.kept = append(c.kept, k)
	if len(c.kept) > 6 { // older ones go, so that numbers of fds are used again
		c.kept[0].Close()
		c.kept = c.kept[1:]
	}
	return k
}

func dial(d *testenv.Dom0, transport string, o client.Options) *client.Client {
	switch transport {
	case "tcp":
		return client.Dial(func(ctx context.Context) (net.Conn, error) { return d.Dial(ctx, "tcp", d.Addr().String()) }, o)
	case "tls":
		return client.Dial(func(ctx context.Context) (net.Conn, error) { return d.DialTLS(ctx) }, o)
	}
	return client.Unix(d.XapiSocket(), o)
}

// any returns one of the caller's connections or a new one.
func (c *caller) any() *client.Client {
	if n := len(c.kept); n > 0 && c.rand.IntN(8) > 0 {
		return c.kept[c.rand.IntN(n)]
	}
	shapes := []client.Shape{client.Python, client.Node, client.JSON1}
	shape := shapes[c.rand.IntN(len(shapes))]
	if c.rand.IntN(3) == 0 { // what a member is asked it passes on
		return c.to(true, "unix", shape)
	}
	return c.to(false, []string{"unix", "unix", "tcp", "tls"}[c.rand.IntN(4)], shape)
}

// call makes one call; that it fails at XAPI is an answer.
func (c *caller) call(ctx context.Context, k *client.Client, method string, params ...any) (any, error) {
	c.pace(ctx)
	k.Trace(c.traceparent())
	v, err := k.Call(ctx, method, append([]any{c.session}, params...)...)
	var f *client.Failure
	if errors.As(err, &f) {
		return nil, nil
	}
	return v, err
}

func (c *caller) look(ctx context.Context) error {
	k := c.any()
	for range 1 + c.rand.IntN(4) {
		methods := []string{"VM.get_record", "VM.get_power_state", "VM.get_uuid"}
		if _, err := c.call(ctx, k, methods[c.rand.IntN(len(methods))], c.vm.Ref); err != nil {
			return err
		}
	}
	return nil
}

func (c *caller) cycle(ctx context.Context) error {
	k := c.any()
	if _, err := c.call(ctx, k, "VM.start", c.vm.Ref, false, false); err != nil {
		return err
	}
	_, err := c.call(ctx, k, []string{"VM.hard_shutdown", "VM.clean_shutdown"}[c.rand.IntN(2)], c.vm.Ref)
	return err
}

func (c *caller) asyncCycle(ctx context.Context) error {
	k := c.any()
	if err := c.task(ctx, k, "Async.VM.start", c.vm.Ref, false, false); err != nil {
		return err
	}
	return c.task(ctx, k, "Async.VM.hard_shutdown", c.vm.Ref)
}

// task makes an asynchronous call and waits for its task.
func (c *caller) task(ctx context.Context, k *client.Client, method string, params ...any) error {
	task, err := c.call(ctx, k, method, params...)
	if err != nil || task == nil {
		return err
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		state, err := c.call(ctx, k, "task.get_status", task)
		if err != nil || state != "pending" {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (c *caller) xe(ctx context.Context) error {
	d := c.pool.Coordinator
	if c.rand.IntN(4) == 0 {
		d = c.pool.Member
	}
	commands := [][]string{{"vm-list", "params=uuid"}, {"vm-list"}, {"no-such-command"}}
	todo := commands[c.rand.IntN(len(commands)):][:1]
	if c.rand.IntN(3) == 0 {
		todo = [][]string{{"vm-start", "uuid=" + c.vm.UUID}, {"vm-shutdown", "uuid=" + c.vm.UUID, "force=true"}}
	}
	for _, args := range todo {
		c.pace(ctx)
		_, err := client.Unix(d.XapiSocket(), client.Options{Traceparent: c.traceparent()}).Xe(ctx, args...)
		if err != nil && !errors.Is(err, client.ErrCommand) {
			return err
		}
	}
	return nil
}

func (c *caller) fail(ctx context.Context) error {
	k := c.any()
	switch c.rand.IntN(5) {
	case 0:
		_, err := c.call(ctx, k, "VM.start", "OpaqueRef:no-such-vm", false, false)
		return err
	case 1:
		_, err := c.call(ctx, k, "VM.no_such_method", c.vm.Ref)
		return err
	case 2:
		_, err := c.call(ctx, k, "VM.start", c.vm.Ref)
		return err
	case 3: // a VM of somebody else's, who may be at work on it
		all := c.pool.VMs()
		_, err := c.call(ctx, k, "VM.hard_shutdown", all[c.rand.IntN(len(all))].Ref)
		return err
	}
	c.pace(ctx)
	_, _, err := dial(c.pool.Coordinator, "unix", client.Options{Traceparent: c.traceparent()}).Request(ctx, "GET", "/no-such-path", nil)
	return err
}

// cut closes a connection in the middle of the header, of the body, or after the
// request, before there is an answer; what was asked for goes on.
func (c *caller) cut(ctx context.Context) error {
	c.pace(ctx)
	method, params := "VM.get_record", quoted(c.session, c.vm.Ref)
	if c.rand.IntN(3) == 0 {
		method, params = "VM.start", params+",false,false"
	}
	body := `{"method":"` + method + `","params":[` + params + `],"id":1}`
	head := "POST /jsonrpc HTTP/1.1\r\nhost: localhost\r\n"
	if t := c.traceparent(); t != "" {
		head += "traceparent: " + t + "\r\n"
	}
	head += "content-length: " + strconv.Itoa(len(body)) + "\r\nconnection: keep-alive\r\n\r\n"
	at := len(head) + len(body)
	switch c.rand.IntN(3) {
	case 0:
		at = 1 + c.rand.IntN(len(head)-1)
	case 1:
		at = len(head) + c.rand.IntN(len(body))
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.pool.Coordinator.XapiSocket())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.WriteString(conn, (head + body)[:at])
	return err
}

func quoted(all ...string) string {
	out := make([]string, len(all))
	for i, s := range all {
		out[i] = strconv.Quote(s)
	}
	return strings.Join(out, ",")
}

// lastPID is where the kernel shows, and takes, the number after which it looks for
// a free one for the next thread or process.
const lastPID = "/proc/sys/kernel/ns_last_pid"

// recycle makes the kernel give out the same few hundred numbers of threads and
// processes again and again until ctx ends.
func recycle(ctx context.Context) error {
	base, err := os.ReadFile(lastPID)
	if err != nil {
		return fmt.Errorf("numbers of threads cannot be forced to be used again: %w", err)
	}
	for ctx.Err() == nil {
		if err := os.WriteFile(lastPID, base, 0); err != nil {
			return fmt.Errorf("numbers of threads cannot be forced to be used again: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// summary says what was made.
func (m *mix) summary() string {
	var out []string
	for _, name := range sorted(m.kinds) {
		out = append(out, fmt.Sprintf("%s %d", name, m.kinds[name]))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
