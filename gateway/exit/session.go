package exit

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"ptgate/adapter/socks5"
	"ptgate/gateway/answer"
	"ptgate/gateway/destination"
	"ptgate/gateway/lookup"
	"ptgate/gateway/measure"
	"ptgate/gateway/outcome"
	"ptgate/gateway/relay"
	"ptgate/gateway/socks"
	"ptgate/gateway/stream"
	"ptgate/gateway/ways"
	"ptgate/routes"
)

// ServeConn serves one SOCKS5 session on c, which is a carrier's stream or a bare
// connection from a PT. It owns c. client is the address of whoever asks, without a port;
// "": it is not known. After a success it returns the relay, and the caller
// has to call that: in a new goroutine its stack is smaller. Otherwise it returns nil.
// The end of ctx resets both connections. A complete and allowed request takes a place
// until the relay has ended.
func (e *Exit) ServeConn(ctx context.Context, c stream.Conn, client string, place Place, o relay.Options) (then func()) {
	set := e.settings()
	anyone := e.anyone.Load() // before the roster
	s := &session{exit: e, conn: c, client: client, set: set, ctx: ctx, place: &taken{place}, relay: &o,
		roster: e.roster.Load(), leave: func() {}}
	if set.Handshake > 0 {
		s.due = time.Now().Add(set.Handshake)
		c.SetReadDeadline(s.due)
	}
	s.hs.Dial, s.hs.Detail = s.dial, true
	if s.roster != nil {
		s.hs.Valid = s.valid
	} else {
		s.ctx, s.leave = anyone.during(ctx)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	s.hs.Serve(c)
	live := stop()
	switch {
	case s.asked || !s.hs.Answered:
	case s.hs.Asked && !s.hs.Authed: // the method valid has counted it
	case s.hs.Reason == answer.Credentials:
		s.exit.book.Add(outcome.ExitBadCredentials, outcome.By(), "cause", "none given")
	default:
		s.refused(s.hs.Reason)
	}
	upstream := s.hs.Upstream
	if upstream == nil {
		s.leave()
		s.hs.Refuse() // if the client has not been told yet
		c.Close()     // in order: the refusal still arrives
		return nil
	}
	if !s.hs.Granted || !live {
		upstream.Reset()
		c.Reset()
		s.leave()
		s.place.Release()
		return nil
	}
	o.Early = s.hs.Early
	ctx = s.ctx
	if s.account != nil {
		s.account.in.Add(int64(len(o.Early)))
		c = newMetered(c, s.account)
	}
	if s.inside != nil {
		upstream.Close()
		return func() {
			defer s.place.Release()
			defer s.leave()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Reset() })()
			s.inside(stream.Ahead(c, o.Early))
		}
	}
	return func() {
		defer s.place.Release()
		defer s.leave()
		if err := relay.Run(ctx, c, upstream, o); err != nil {
			// The error's text has addresses in it, which no log is to have.
			e.log.Debug("exit: connection ended", "reason", answer.Of(err))
		}
	}
}

// Busy returns the bytes to send to a session beyond the limit, before anything is read
// from the client. They are the choice of a method, a status if there are users, and a
// general failure (RFC 1928 sections 3 and 6, RFC 1929 section 2).
func (e *Exit) Busy() []byte {
	var b []byte
	if e.roster.Load() != nil {
		b = socks5.AppendStatus(socks5.AppendMethod(b, socks5.UserPassword), 0)
	} else {
		b = socks5.AppendMethod(b, socks5.NoAuth)
	}
	return socks5.AppendFailure(b, answer.Limit.SOCKS())
}

// past is a deadline that ends whatever waits.
var past = time.Unix(1, 0)

// A taken place is that of one session. It becomes one of a user's when the user is known.
type taken struct{ Place }

// watchAfter is how old a dial is when the watch for its client begins. Most dials are
// done by then, and need none.
const watchAfter = time.Second

// A session is one handshake.
type session struct {
	exit   *Exit
	conn   stream.Conn
	client string
	set    *Settings
	ctx    context.Context
	due    time.Time // when the request has to be complete; zero: no limit
	hs     socks.Session

	relay  *relay.Options
	asked  bool           // there was a request for a destination
	inside func(net.Conn) // serves a destination that is part of the exit; nil: it is none
	place  *taken

	roster  *roster  // nil: nobody is asked
	account *account // of the user; nil: not known
	leave   func()   // ends ctx, where that is of the user's own
}

func (s *session) valid(user, password string) bool {
	begun := time.Now()
	ok := s.exit.guard.Valid(s.ctx, s.roster.passwords, s.client, user, password)
	if !s.due.IsZero() { // the client has waited, and not the other way round
		s.due = s.due.Add(time.Since(begun))
		s.conn.SetReadDeadline(s.due)
		if s.ctx.Err() != nil { // its end may have set another one before
			s.conn.SetDeadline(past)
		}
	}
	a := s.roster.account(user)
	switch {
	case !ok && a == nil && s.exit.revoked(user):
		s.exit.book.Add(outcome.ExitBadCredentials, outcome.By(), "user", user, "cause", "revoked")
	case !ok && a == nil:
		// It may be anything, such as a password in the wrong place: no log has it.
		s.exit.book.Add(outcome.ExitBadCredentials, outcome.By())
	case !ok:
		s.exit.book.Add(outcome.ExitBadCredentials, outcome.By(), "user", user)
	case a.user.Load().expired():
		s.exit.book.Add(outcome.ExitBadCredentials, outcome.By(), "user", user, "cause", "expired")
		return false
	default:
		s.account = a
		s.ctx, s.leave = a.during(s.ctx)
		s.place.Place = userPlace{a, user, s.set.UserStreams, s.place.Place, s.relay.Halves}
		s.relay.Groups = append(s.relay.Groups, userGroup(user))
	}
	return ok
}

func (s *session) refused(r answer.Reason) {
	s.exit.book.Add(outcome.ExitRefused, outcome.By(r.String()))
	if r == answer.NoNames {
		s.exit.book.Add(outcome.ExitNoNames, outcome.By())
	}
}

// mostAsides bounds how many clients get the list of ways at the same time.
const mostAsides = 256

// An aside is the place of a client that gets the list of ways. It is none of a program's:
// who may have one connection has the list beside it.
type aside struct{ all *atomic.Int64 }

// Acquire implements Place.
func (a aside) Acquire() bool {
	if a.all.Add(1) > mostAsides {
		a.all.Add(-1)
		return false
	}
	return true
}

// Release implements Place.
func (a aside) Release() { a.all.Add(-1) }

// within takes a place for a destination that is part of the exit. There is nothing to
// dial: what stands for the destination is never used.
func (s *session) within(serve func(net.Conn)) (stream.Conn, error) {
	if !s.place.Acquire() {
		return nil, answer.Errorf(answer.Limit, "exit: no place is free")
	}
	s.inside = serve
	nothing, end := net.Pipe()
	end.Close()
	return stream.From(nothing), nil
}

// isQuestion tells whether a client wants to know the addresses of a name.
func isQuestion(t routes.Target) bool {
	_, ok := lookup.Question(t.Name)
	return ok
}

// lookup looks up the name that a client asks about, if the client may connect there.
func (s *session) lookup(ctx context.Context, question routes.Target) (stream.Conn, error) {
	name, _ := lookup.Question(question.Name)
	t, err := destination.FromHostPort(name, int(question.Port))
	if err != nil || t.Name == "" {
		return nil, answer.Errorf(answer.BadRequest, "exit: no name to look up")
	}
	if s.account != nil {
		if err := s.account.may(t); err != nil {
			return nil, err
		}
	}
	var addrs []netip.Addr
	c, err := s.within(func(c net.Conn) { lookup.Serve(c, addrs) })
	if err != nil {
		return nil, err
	}
	if addrs, err = s.exit.lookup(ctx, t); err != nil {
		s.inside = nil
		s.place.Release()
		return nil, err
	}
	return c, nil
}

// dial opens the destination that the client asks for.
func (s *session) dial(host string, port int) (stream.Conn, error) {
	s.asked = true
	s.conn.SetReadDeadline(time.Time{})
	var c stream.Conn
	left := false
	t, err := destination.FromHostPort(host, port)
	switch {
	case err != nil:
		err = answer.New(answer.BadRequest, err)
	case t.Name == measure.Name:
		c, err = s.within(measure.Serve)
	case isQuestion(t):
		ctx, done := stream.Watch(s.ctx, s.conn, watchAfter, true)
		c, err = s.lookup(ctx, t)
		left = ctx.Err() != nil
		done()
	case t.Name == ways.Name && s.set.Ways != nil:
		s.place.Place = aside{&s.exit.asides}
		c, err = s.within(func(c net.Conn) { ways.Serve(c, s.set.Ways()) })
	case s.account != nil:
		err = s.account.may(t)
	}
	if err == nil && s.inside == nil {
		// The end of the client's direction is no departure: it may have sent all that
		// it has to say.
		ctx, done := stream.Watch(s.ctx, s.conn, watchAfter, false)
		c, err = s.exit.dialInto(ctx, t, s.place)
		left = ctx.Err() != nil
		done()
	}
	switch {
	case err == nil && s.inside != nil: // nothing was opened
	case err == nil:
		s.exit.book.Add(outcome.ExitOpened, outcome.By())
	case !left: // the destination's answer, not the client's end
		s.refused(answer.Of(err))
	}
	return c, err
}
