package session

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/adapter"
	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
)

// Limits of a Server.
const (
	maxSessions       = 1 << 16 // at the same time
	maxSessionsClient = 1 << 8  // of those, of one client
	maxDetached       = 4096    // of them without a carrier
	maxDetachedClient = 64      // of those, of one client
	maxDetachedPart   = 2       // of the memory, for sessions without a carrier
	// leastPeers is how many clients are remembered even if nothing is left of them.
	leastPeers = 64
	// endGrace is how long a peer may take to get the last bytes.
	endGrace = 3 * time.Second
)

// ServerSettings of a Server.
type ServerSettings struct {
	// Resume is how long a session without a carrier is kept; 0: streams die with their
	// carrier.
	Resume time.Duration
	// Buffer is how many bytes are kept for sending them again, for each session; 0: 16 MiB.
	Buffer int64
	// ClientStreams is how many streams one client may have, and ClientNew how many it may
	// open in a second; 0: any number.
	ClientStreams, ClientNew int
	// Spare is called when a client has ClientStreams and opens one more. It tells whether
	// one of them ends soon, so that there may be one more until then. It is called with
	// locks of the session, and must not wait. Nil: none does.
	Spare func(client string) bool
}

// A Server is the far end of all sessions of a process.
type Server struct {
	key      ed25519.PrivateKey
	settings func() ServerSettings
	memory   *Memory
	serial   atomic.Uint64 // of the news; 0: there are none

	mu       sync.Mutex // taken after the mu of an end
	sessions map[sessionID]*served
	peers    map[string]*peer // by the client's address
	most     int              // when there are so many peers, those that are idle are forgotten
	detached []*served        // the one that lost its carriers first comes first
}

// NewServer makes a Server. key shows clients that it is the same box; nil: a new key.
// memory is that of the process; nil: one with the default limits.
func NewServer(key ed25519.PrivateKey, memory *Memory, settings func() ServerSettings) *Server {
	if memory == nil {
		memory = NewMemory()
	}
	if key == nil {
		_, key, _ = ed25519.GenerateKey(nil)
	}
	return &Server{key: key, memory: memory, settings: settings, sessions: map[sessionID]*served{}, peers: map[string]*peer{}, most: leastPeers}
}

// Box is the public key.
func (s *Server) Box() Box { return Box(s.key.Public().(ed25519.PublicKey)) }

// A Group is the sessions that have begun at one listener. Carriers of any listener may be
// attached to them later.
type Group struct {
	server     *Server
	handle     func(*Stream) (then func())
	maxStreams func() int
	log        *slog.Logger

	mu       sync.Mutex // taken last
	stage    uint64
	closed   bool
	sessions map[*served]struct{}
	streams  sync.WaitGroup // none is added when closed
}

// Group makes a Group. It calls handle for each stream, in a goroutine of its own; handle
// owns the stream. If handle returns a function, it is called in a new goroutine, so that
// a long relay does not keep the large stack of a handshake. The caller calls Close.
func (s *Server) Group(maxStreams func() int, log *slog.Logger, handle func(*Stream) (then func())) *Group {
	return &Group{server: s, handle: handle, maxStreams: maxStreams, log: log, sessions: map[*served]struct{}{}}
}

// A served is the far end of one session.
type served struct {
	*end
	own    sync.Mutex // the end's mu
	server *Server
	group  *Group
	id     sessionID
	secret [secretSize]byte
	client string
	resume time.Duration
	told   news // guarded by the end's mu

	// Guarded by the Server's mu.
	away   bool // it has no carrier
	bytes  int64
	expiry *time.Timer
}

// Client is the address of the client that began the stream's session; see ServeOptions. It
// is "" at the client's end.
func (s *Stream) Client() string {
	if v, ok := s.e.owner.(*served); ok {
		return v.client
	}
	return ""
}

// accept implements owner.
func (v *served) accept(s *Stream) {
	g := v.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return // the session is about to end
	}
	p := v.end.peer
	if p == nil {
		p = new(peer) // nobody counts
	}
	p.streams.Add(1)
	g.streams.Go(func() {
		then := g.handle(s)
		if then == nil {
			p.streams.Add(-1)
			return
		}
		relay := func() {
			defer p.streams.Add(-1)
			then()
		}
		g.mu.Lock()
		closed := g.closed
		if !closed {
			g.streams.Go(relay)
		}
		g.mu.Unlock()
		if closed {
			relay()
		}
	})
}

// admits implements owner.
func (v *served) admits() bool {
	p := v.end.peer
	if p == nil {
		return true
	}
	set := v.server.settings()
	if set.ClientNew > 0 && !p.fresh.take(set.ClientNew, time.Now()) {
		return false
	}
	return set.ClientStreams == 0 || p.streams.Load() < int64(set.ClientStreams) || set.Spare != nil && set.Spare(v.client)
}

func (v *served) pong(*lane, uint64) {}

func (v *served) peerLeaves(uint64) {}

// dropped implements owner: without a carrier, the session is kept for some time.
func (v *served) dropped(*lane) {
	if len(v.lanes) > 0 || v.err != nil {
		return
	}
	s := v.server
	s.mu.Lock()
	defer s.mu.Unlock()
	v.back() // it may lose two carriers at once
	v.away, v.bytes = true, v.uses.Load()
	s.detached = append(s.detached, v)
	resume := v.resume
	if len(v.streams) == 0 && v.held == 0 {
		resume = 0 // there is nothing to go on with
	}
	v.expiry = time.AfterFunc(resume, func() { v.expire() })
	s.bound(v)
}

// attached notes that the session has a carrier again. The caller holds the end's mu.
func (v *served) attached() {
	s := v.server
	s.mu.Lock()
	defer s.mu.Unlock()
	v.back()
}

// back takes the session out of those without a carrier. The caller holds the Server's mu.
func (v *served) back() {
	if v.away {
		v.away = false
		v.expiry.Stop()
		v.unlist()
	}
}

// expire ends the session if it has no carrier still.
func (v *served) expire() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.lanes) == 0 {
		v.fail(errDetached)
	}
}

// bound ends the oldest sessions without a carrier when there are too many. It does not
// wait. The caller holds the Server's mu.
func (s *Server) bound(newest *served) {
	total, own := int64(0), 0
	for _, v := range s.detached {
		total += v.bytes
		if v.client == newest.client {
			own++
		}
	}
	for _, v := range slices.Clone(s.detached) {
		tooMany := len(s.detached) > maxDetached || total > s.memory.limit.Load()/maxDetachedPart
		if !tooMany && (own <= maxDetachedClient || v.client != newest.client) {
			continue
		}
		total -= v.bytes
		if v.client == newest.client {
			own--
		}
		v.expiry.Reset(0)
		v.unlist()
	}
}

// unlist takes v out of the list of sessions without a carrier. It expires all the same. The
// caller holds the Server's mu.
func (v *served) unlist() {
	v.server.detached = slices.DeleteFunc(v.server.detached, func(x *served) bool { return x == v })
}

// ended implements owner.
func (v *served) ended(err error) {
	s := v.server
	s.mu.Lock()
	v.back()
	delete(s.sessions, v.id)
	if p := v.end.peer; p != nil {
		p.sessions--
	}
	s.forget()
	s.mu.Unlock()
	g := v.group
	g.mu.Lock()
	delete(g.sessions, v)
	g.mu.Unlock()
	g.log.Debug("session ended", "error", err)
}

// forget forgets clients of which nothing is left, if there are many. The caller holds mu.
func (s *Server) forget() {
	if len(s.peers) < s.most {
		return
	}
	maps.DeleteFunc(s.peers, func(_ string, p *peer) bool { return p.idle() })
	s.most = max(leastPeers, 2*len(s.peers))
}

// ServeOptions are the options of one connection. Traffic has to be set.
type ServeOptions struct {
	Handshake time.Duration // for the first bytes
	Client    string        // whose connection it is, as far as that is known
	Traffic   *carrier.Traffic
	Lost      func(silent time.Duration) // as in carrier.Options
	Cost      func(n int) int            // as in carrier.Options; nil: n
}

// Serve serves one carrier. It owns conn, which comes from carrier.Sniff. The carrier
// belongs to a session of any Group, or begins one in this Group. Serve returns when the
// connection has ended. When ctx ends, Serve closes it. The session and its streams may go
// on over other carriers.
func (g *Group) Serve(ctx context.Context, conn stream.Conn, o ServeOptions) error {
	conn.SetReadDeadline(time.Now().Add(o.Handshake))
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	body, err := readBody(conn)
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Reset()
		return fmt.Errorf("%w: %w", errHello, adapter.WithoutAddresses(err))
	}
	h, err := parseHello(body)
	if err != nil {
		conn.Reset()
		return err
	}
	l, c, err := g.attach(conn, &h, o)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Leave(false) })()
	return l.serve(c)
}

// Failed tells from the error of Serve whether the client does not keep to the protocol. One
// whose session is not known, or that loses its connection, does.
func Failed(err error) bool { return errors.Is(err, errHello) || errors.Is(err, errFrame) }

// An attached is a lane of a session, and the session.
type attached struct {
	*lane
	v *served
}

// serve reads from the carrier until its end.
func (a attached) serve(c *carrier.Conn) error {
	err := readLane(c, func(p []byte) { a.v.take(a.lane, p) })
	a.v.mu.Lock()
	a.v.drop(a.lane, false)
	if errors.Is(a.v.err, errFrame) {
		err = a.v.err
	}
	a.v.mu.Unlock()
	c.Close()
	return err
}

// attach makes conn a carrier of the session that h names. After an error the connection
// is closed, and the client has been told.
func (g *Group) attach(conn stream.Conn, h *hello, o ServeOptions) (attached, *carrier.Conn, error) {
	s := g.server
	refuse := func(r reply) (attached, *carrier.Conn, error) {
		r.features = features
		r.key, r.signature = s.key.Public().(ed25519.PublicKey), ed25519.Sign(s.key, h.signed())
		conn.SetWriteDeadline(time.Now().Add(endGrace))
		conn.Write(r.append())
		conn.Close()
		return attached{}, nil, answerError(r.answer)
	}
	v, answer := g.find(h, o.Client)
	if v == nil {
		return refuse(reply{answer: answer})
	}
	v.mu.Lock()
	if v.err != nil {
		v.mu.Unlock()
		return refuse(reply{answer: answerUnknown})
	}
	if fresh, err := v.carriers.use(h.number); !fresh || err != nil {
		v.mu.Unlock()
		return refuse(reply{answer: answerRefused})
	}
	r := reply{features: features, answer: answerWelcome, resume: seconds(v.resume), mac: mac(v.secret, roleBox, v.id, h.number)}
	if h.flags&flagCreate != 0 {
		r.key, r.signature = s.key.Public().(ed25519.PublicKey), ed25519.Sign(s.key, h.signed())
	}
	l := &lane{number: h.number, extra: h.flags&flagExtra != 0, budgeted: h.budget > 0}
	opts := carrier.Options{Traffic: o.Traffic, Lost: o.Lost, Budget: int64(min(h.budget, maxOffset)), Cost: o.Cost, Lock: &v.own, Room: func() {
		v.mu.Lock()
		v.feed(l)
		v.mu.Unlock()
	}}
	if opts.Cost == nil {
		opts.Cost = func(n int) int { return n }
	}
	c := carrier.Accept(conn, r.append(), opts)
	l.pipe = c
	v.attached()
	v.add(l) // which drops it at once if its budget allows nothing
	v.tell()
	v.mu.Unlock()
	return attached{l, v}, c, nil
}

// find returns the session of h, or makes one. Nil: the answer says why not. A client that
// does not know the secret gets the same answer as for a session that there is not.
func (g *Group) find(h *hello, client string) (*served, byte) {
	s := g.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.sessions[h.id]; v != nil {
		want := v.secret
		if h.flags&flagCreate == 0 {
			want = mac(v.secret, roleGateway, h.id, h.number)
		}
		if !hmac.Equal(want[:], h.proof[:]) {
			return nil, answerUnknown
		}
		return v, answerWelcome
	}
	if h.flags&flagCreate == 0 {
		return nil, answerUnknown
	}
	if len(s.sessions) >= maxSessions {
		return nil, answerFull
	}
	set := s.settings()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.stage != 0 {
		return nil, answerLeaving
	}
	v := &served{server: s, group: g, id: h.id, secret: h.proof, client: client,
		resume: min(set.Resume, time.Duration(min(h.resume, 1<<20))*time.Second)}
	v.told.hears = h.features&featureNews != 0
	v.end = newEnd(&v.own, false, v, s.memory, v.resume > 0, orBuffer(set.Buffer), g.maxStreams())
	if client != "" {
		p := s.peers[client]
		if p != nil && p.sessions >= maxSessionsClient {
			return nil, answerFull
		}
		if p == nil {
			p = new(peer)
			s.peers[client] = p
		}
		v.end.peer = p
		p.sessions++
	}
	g.sessions[v] = struct{}{}
	s.sessions[h.id] = v
	return v, answerWelcome
}

// defaultBuffer is used where a Buffer is 0.
const defaultBuffer = 16 << 20

func orBuffer(n int64) int64 {
	if n <= 0 {
		return defaultBuffer
	}
	return n
}

// all lists the sessions of the group.
func (g *Group) all() []*served {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.sessions))
}

// Sessions is how many sessions of the group there are.
func (g *Group) Sessions() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.sessions)
}

// Leave tells all clients that the server is about to stop. No session begins any more.
// With now, streams that begin are refused; otherwise they are taken, but a client that
// has another way uses that one.
func (g *Group) Leave(now bool) {
	stage := uint64(stageSoon)
	if now {
		stage = stageNow
	}
	g.mu.Lock()
	g.stage = stage
	g.mu.Unlock()
	for _, v := range g.all() {
		v.mu.Lock()
		v.leaving(stage)
		v.mu.Unlock()
	}
}

// Close ends the sessions of the group. What their streams have written arrives if the
// clients answer in time. It returns when all handlers have returned, so they should be
// about to. It waits for no carrier: that is for those who have called Serve.
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	g.stage = stageNow
	g.mu.Unlock()
	var wg sync.WaitGroup
	for _, v := range g.all() {
		wg.Go(func() {
			v.end.flush(endGrace)
			v.mu.Lock()
			v.shut(errLeaving)
			v.mu.Unlock()
		})
	}
	wg.Wait()
	g.streams.Wait()
}
