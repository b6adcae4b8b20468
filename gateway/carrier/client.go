package carrier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A Client is the gateway's end of a carrier. Its methods may be called from any
// goroutine.
type Client struct {
	session *yamux.Session
	link    *link
	log     *slog.Logger
	born    time.Time

	open atomic.Int64 // streams, by our own count: yamux keeps a lost one

	closing sync.Once
	stop    chan struct{}

	mu     sync.Mutex
	closed bool // wg takes no more
	wg     sync.WaitGroup
}

// spawn runs f in a goroutine that Close waits for, and tells whether it could.
func (c *Client) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// NewClient starts a carrier on conn and owns it from then on. traffic may be
// shared by several carriers.
func NewClient(conn stream.Conn, traffic *Traffic, log *slog.Logger) (*Client, error) {
	l := newLink(conn, Preamble, traffic)
	s, err := yamux.Client(l, settings(0, log), nil)
	if err != nil {
		l.Close()
		return nil, err
	}
	c := &Client{session: s, link: l, log: log, born: time.Now(), stop: make(chan struct{})}
	l.await()
	c.wg.Go(c.keep)
	return c, nil
}

// keep asks the peer for a sign of life when nothing was heard for a while, and
// at once when the machine has slept.
func (c *Client) keep() {
	const tick = time.Second
	t := time.NewTicker(tick)
	defer t.Stop()
	interval := func() time.Duration { return keepAlive - time.Duration(rand.Int64N(int64(keepAlive/4))) }
	pause := interval()
	wall := time.Now().Round(0)
	for {
		select {
		case <-c.stop:
			return
		case <-c.session.CloseChan():
			return
		case <-t.C:
		}
		// The monotonic clock stands still while the machine sleeps, the wall
		// clock does not.
		asleep := time.Now().Round(0).Sub(wall) > 10*tick
		wall = time.Now().Round(0)
		quiet := time.Duration(now() - c.link.heard.Load())
		if silent := c.link.silence(); silent > deadAfter {
			c.log.Info("carrier is dead: no answer", "for", silent.Round(time.Second))
			c.wg.Go(func() { c.session.Close() }) // it waits for the loops to end
			return
		}
		if quiet < pause && !asleep {
			continue
		}
		pause = interval()
		if c.link.overdue() == 0 {
			c.link.await()
			c.wg.Go(func() { c.session.Ping() })
		}
	}
}

// Auth is the user and password for an exit that asks for them. The zero value
// offers none.
type Auth struct{ User, Password string }

// Options of Open.
type Options struct {
	Auth Auth
	// Optimistic: return at once. The far end's reply is read with the first
	// bytes, and Settled, which may be nil, told of it, once.
	Optimistic bool
	Settled    func(error)
	// Limit bounds the wait for an optimistic stream's reply.
	Limit time.Duration
}

// Open asks the exit for a connection to t. Without Options.Optimistic it
// returns when the exit has answered: a *Refusal in the error is the exit's own
// answer, anything else (*Lost) the carrier's failure. ctx bounds the call only.
func (c *Client) Open(ctx context.Context, t routes.Target, o Options) (*Stream, error) {
	request, err := appendRequest(make([]byte, 0, 64), t, o.Auth)
	if err != nil {
		return nil, err
	}
	ys, err := c.openStream(ctx)
	if err != nil {
		return nil, lost("stream", err)
	}
	c.open.Add(1)
	s := &Stream{s: ys, l: c.link, open: &c.open, auth: o.Auth.User != ""}
	undo := func(err error) (*Stream, error) {
		s.forget()
		c.drop(ys)
		return nil, err
	}
	cancelled := context.AfterFunc(ctx, func() { ys.SetDeadline(time.Unix(1, 0)) })
	n, err := ys.Write(request)
	c.link.queued.Add(int64(n))
	if err != nil {
		cancelled()
		if errors.Is(err, yamux.ErrStreamReset) {
			// An exit that can take no more says so without having read.
			if answer := readAnswers(ys, s.auth); refused(answer) {
				return undo(answer)
			}
		}
		return undo(lost("request", err))
	}
	c.link.await()
	if o.Optimistic {
		if !cancelled() {
			return undo(lost("request", context.Cause(ctx)))
		}
		s.pending, s.settled = true, o.Settled
		ys.SetReadDeadline(time.Now().Add(o.Limit))
		return s, nil
	}
	err = readAnswers(ys, s.auth)
	if !cancelled() || err != nil && ctx.Err() != nil {
		err = lost("reply", context.Cause(ctx))
	}
	if err != nil {
		return undo(err)
	}
	return s, nil
}

// drop resets a stream. On a connection that stands still, that waits behind all
// else; the caller does not.
func (c *Client) drop(s *yamux.Stream) {
	if !c.spawn(func() { s.Reset() }) {
		s.Reset()
	}
}

func refused(err error) bool {
	_, ok := errors.AsType[*Refusal](err)
	return ok
}

// openStream is the session's, which for its part keeps a stream whose context
// ended in the middle until the session itself ends.
func (c *Client) openStream(ctx context.Context) (*yamux.Stream, error) {
	type opened struct {
		s   *yamux.Stream
		err error
	}
	result := make(chan opened)
	if !c.spawn(func() {
		s, err := c.session.OpenStream(context.Background()) // ends with the session at the latest
		select {
		case result <- opened{s, err}:
		case <-ctx.Done():
			if err == nil {
				s.Reset()
			}
		}
	}) {
		return nil, errClosed
	}
	select {
	case o := <-result:
		return o.s, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Check returns nil when the exit answers and takes a.
func (c *Client) Check(ctx context.Context, a Auth) error {
	err := c.greet(ctx, a)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("no answer from the far end: %w", context.Cause(ctx))
	}
	return err
}

func (c *Client) greet(ctx context.Context, a Auth) error {
	s, err := c.openStream(ctx)
	if err != nil {
		return lost("stream", err)
	}
	defer c.drop(s)
	defer context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })()
	c.link.await()
	return Greet(s, a)
}

// Streams is how many streams are open.
func (c *Client) Streams() int { return int(c.open.Load()) }

// RTT is the measured round trip time, 0 while there is none.
func (c *Client) RTT() time.Duration { return c.session.RTT() }

// Age tells since when the carrier exists.
func (c *Client) Age() time.Duration { return time.Since(c.born) }

// Suspect tells that the peer owes an answer for longer than it should need. A
// single byte from it ends the suspicion.
func (c *Client) Suspect() bool {
	// A round trip that was measured under load can be half a minute.
	return c.link.overdue() > min(max(suspectAfter, 4*c.RTT()), deadAfter/2)
}

// Quiet tells for how long nothing was heard.
func (c *Client) Quiet() time.Duration { return time.Duration(now() - c.link.heard.Load()) }

// Done is closed when the carrier has ended.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// Closed tells whether it has.
func (c *Client) Closed() bool { return c.session.IsClosed() }

// Close ends the carrier: in order, so that all that streams have written
// arrives, if the peer answers within grace; by force then.
func (c *Client) Close(grace time.Duration) {
	c.closing.Do(func() {
		close(c.stop)
		if grace > 0 {
			end(c.session, grace)
		}
		c.session.Close()
		c.link.Close()
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
	})
	c.wg.Wait()
}

// appendRequest appends the client's whole side of a SOCKS5 session: greeting
// (RFC 1928 section 3), user and password (RFC 1929 section 2), CONNECT (RFC
// 1928 section 4).
func appendRequest(b []byte, t routes.Target, a Auth) ([]byte, error) {
	b, err := appendGreeting(b, a)
	if err != nil {
		return nil, err
	}
	b = append(b, 5, 1, 0)
	switch {
	case t.Addr.Is4():
		b = append(append(b, 1), t.Addr.AsSlice()...)
	case t.Addr.IsValid():
		b = append(append(b, 4), t.Addr.AsSlice()...)
	default:
		if len(t.Name) == 0 || len(t.Name) > 255 {
			return nil, fmt.Errorf("name of %d bytes", len(t.Name))
		}
		b = append(append(b, 3, byte(len(t.Name))), t.Name...)
	}
	return append(b, byte(t.Port>>8), byte(t.Port)), nil
}

func appendGreeting(b []byte, a Auth) ([]byte, error) {
	if a.User == "" {
		return append(b, 5, 1, 0), nil
	}
	if len(a.User) > 255 || len(a.Password) > 255 {
		return nil, fmt.Errorf("user or password longer than 255 bytes")
	}
	b = append(b, 5, 1, 2, 1, byte(len(a.User)))
	b = append(b, a.User...)
	b = append(b, byte(len(a.Password)))
	return append(b, a.Password...), nil
}
