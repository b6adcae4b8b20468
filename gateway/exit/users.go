package exit

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptgate/gateway/answer"
	"ptgate/gateway/relay"
	"ptgate/gateway/stream"
	"ptgate/routes"
)

// A User is one who may use the exit. What is zero has no limit.
type User struct {
	Password string // or a hash of it, see package credentials
	Expires  time.Time
	Rate     int64 // bytes a second, in each direction
	Streams  int   // open at the same time; 0: Settings.UserStreams
	Quota    int64 // bytes in a calendar month (UTC), both directions together
	// Allow must match the destination, beside the policy's. Nil: every destination is
	// allowed.
	Allow *routes.Table
}

func (u *User) expired() bool { return !u.Expires.IsZero() && !time.Now().Before(u.Expires) }

// A Usage is what a user has used. It names no destination and no address.
type Usage struct {
	Streams int       `json:"streams"`       // open now
	Last    time.Time `json:"last,omitzero"` // when a stream was open; zero: never
	Up      int64     `json:"up"`            // bytes from the user
	Down    int64     `json:"down"`          // bytes to the user
	Month   string    `json:"month"`         // as in "2026-11"
	Used    int64     `json:"used"`          // bytes in that month, both directions together
}

var (
	errRevoked = errors.New("exit: the user is gone, or has another password")
	errAsked   = errors.New("exit: every client needs a user now")
	errExpired = errors.New("exit: the user's time is over")
	errQuota   = errors.New("exit: the user's quota for this month is used up")
)

// A roster has the users of one configuration. It is never changed.
type roster struct {
	passwords map[string]string
	accounts  map[string]*account
}

// An account is one user while the password stays the same. Its limits may change; they
// hold for all streams of the user together, by whatever carrier and session these come.
type account struct {
	user     atomic.Pointer[User]
	up, down bucket
	*meter

	mu     sync.Mutex
	term   *term // of all streams
	expiry *time.Timer
}

// A term is the time for which streams may be open. The cause of its end says why.
type term struct {
	ctx context.Context
	end context.CancelCauseFunc
}

func newTerm() *term {
	ctx, end := context.WithCancelCause(context.Background())
	return &term{ctx, end}
}

// during returns a context for one stream, which ends with ctx, or with the term. The
// caller calls leave.
func (own *term) during(ctx context.Context) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(own.ctx, func() { cancel(context.Cause(own.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// A meter counts what a user uses. It outlives a change of the password.
type meter struct {
	in, out atomic.Int64 // bytes from the user and to the user
	// before is what in and out were together when the present month began.
	before atomic.Int64

	mu    sync.Mutex
	count int // open streams
	last  time.Time
	month string
}

// SetUsers says who may use the exit from now on. Nil: nobody is asked. Streams of users who
// are gone, or have another password, end at once; if users are asked for from now on, those
// of everybody.
func (e *Exit) SetUsers(all map[string]User) {
	e.changing.Lock()
	defer e.changing.Unlock()
	old := e.roster.Load()
	if all == nil && old == nil {
		return
	}
	var next *roster
	if all != nil {
		next = &roster{map[string]string{}, map[string]*account{}}
	}
	for name, u := range all {
		a := old.account(name)
		if a == nil || a.user.Load().Password != u.Password {
			a = newAccount(e.meterOf(name, a))
		}
		a.set(&u)
		next.passwords[name], next.accounts[name] = u.Password, a
	}
	e.roster.Store(next)
	if old == nil {
		// A session takes its term first, and then looks at the roster.
		e.anyone.Swap(newTerm()).end(errAsked)
		return
	}
	for name, a := range old.accounts {
		if a != next.account(name) {
			a.close(errRevoked)
		}
		if next.account(name) == nil {
			// Who comes back, as after a mistake in a file, goes on with the same quota.
			if e.used == nil {
				e.used = map[string]Usage{}
			}
			e.used[name] = a.usage()
		}
	}
}

func (r *roster) account(name string) *account {
	if r == nil {
		return nil
	}
	return r.accounts[name]
}

// meterOf is the meter of a user, whose account has been a, or nil. The caller holds
// changing.
func (e *Exit) meterOf(name string, a *account) *meter {
	if a != nil {
		return a.meter
	}
	m := &meter{}
	if u, ok := e.used[name]; ok {
		m.in.Store(u.Up)
		m.out.Store(u.Down)
		m.before.Store(u.Up + u.Down - u.Used)
		m.last, m.month = u.Last, u.Month
		delete(e.used, name)
	}
	return m
}

// revoked tells whether a name, which nobody has now, was that of a user.
func (e *Exit) revoked(name string) bool {
	e.changing.Lock()
	defer e.changing.Unlock()
	_, ok := e.used[name]
	return ok
}

// Used says what users have used before. Call it before SetUsers.
func (e *Exit) Used(all map[string]Usage) {
	e.changing.Lock()
	defer e.changing.Unlock()
	e.used = maps.Clone(all)
}

// Usage tells what each user has used.
func (e *Exit) Usage() map[string]Usage {
	all := map[string]Usage{}
	if r := e.roster.Load(); r != nil {
		for name, a := range r.accounts {
			all[name] = a.usage()
		}
	}
	return all
}

func newAccount(m *meter) *account {
	return &account{meter: m, term: newTerm()}
}

// set changes the limits.
func (a *account) set(u *User) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.user.Store(u)
	if a.expiry != nil {
		a.expiry.Stop()
		a.expiry = nil
	}
	if u.expired() {
		a.term.end(errExpired)
		return
	}
	if a.term.ctx.Err() != nil { // the time is longer again
		a.term = newTerm()
	}
	if end := a.term.end; !u.Expires.IsZero() {
		a.expiry = time.AfterFunc(time.Until(u.Expires), func() { end(errExpired) })
	}
}

// close ends the streams.
func (a *account) close(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.expiry != nil {
		a.expiry.Stop()
	}
	a.term.end(cause)
}

// during is that of the present term.
func (a *account) during(ctx context.Context) (_ context.Context, leave func()) {
	a.mu.Lock()
	own := a.term
	a.mu.Unlock()
	return own.during(ctx)
}

// roll begins a new month where one has begun. The caller holds the meter's mu.
func (m *meter) roll() {
	if now := time.Now().UTC().Format("2006-01"); now != m.month {
		m.month = now
		m.before.Store(m.in.Load() + m.out.Load())
	}
}

func (m *meter) usage() Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.roll()
	if m.count > 0 {
		m.last = time.Now().Round(0)
	}
	in, out := m.in.Load(), m.out.Load()
	return Usage{Streams: m.count, Last: m.last, Up: in, Down: out, Month: m.month, Used: in + out - m.before.Load()}
}

// over tells whether the quota is used up. A month that has begun counts from the next call
// of usage or enter on.
func (a *account) over() bool {
	q := a.user.Load().Quota
	return q > 0 && a.in.Load()+a.out.Load()-a.before.Load() >= q
}

// may tells whether the user may ask for t now.
func (a *account) may(t routes.Target) error {
	switch allow := a.user.Load().Allow; {
	case allow != nil && !asked(allow, t):
		return answer.Errorf(answer.Blocked, "exit: not allowed by the user's allow")
	case a.over():
		return answer.New(answer.Limit, errQuota)
	}
	return nil
}

// enter takes a place for a stream, if there are fewer than most. room: another stream is
// about to end.
func (m *meter) enter(most int, room bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.roll()
	if most > 0 && m.count >= most && !room {
		return false
	}
	m.count++
	return true
}

func (m *meter) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count--
	m.last = time.Now().Round(0)
}

// A userPlace is a place among those of a user, and one of place: one user leaves room for
// the others.
type userPlace struct {
	account *account
	user    string
	most    int // if the user has no number of its own
	place   Place
	// halves has the user's half-closed pairs, in the group userGroup.
	halves *relay.Halves
}

func userGroup(user string) string { return "user " + user }

// Acquire implements Place.
func (p userPlace) Acquire() bool {
	most := p.most
	if n := p.account.user.Load().Streams; n > 0 {
		most = n
	}
	for room := false; !p.account.enter(most, room); room = true {
		if room || !p.halves.End(userGroup(p.user)) {
			return false
		}
	}
	if !p.place.Acquire() {
		p.account.leave()
		return false
	}
	return true
}

// Release implements Place.
func (p userPlace) Release() {
	p.account.leave()
	p.place.Release()
}

// burst is how much may pass at once after a silence, as a time at the full rate.
const burst = 250 * time.Millisecond

// A bucket keeps a rate.
type bucket struct {
	mu   sync.Mutex
	paid time.Time // when all that was taken is within the rate
}

// take takes n bytes and returns how long to wait for them. Who asks first is served first.
func (b *bucket) take(n int, rate int64) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if first := now.Add(-burst); b.paid.Before(first) {
		b.paid = first
	}
	b.paid = b.paid.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return b.paid.Sub(now)
}

// A metered connection is a stream of a user. Its bytes are counted, and wait where the user
// has a rate. What is read comes from the user.
type metered struct {
	stream.Conn
	account *account
	once    sync.Once
	gone    chan struct{} // closed with the connection: nobody waits any more
}

func newMetered(c stream.Conn, a *account) *metered {
	return &metered{Conn: c, account: a, gone: make(chan struct{})}
}

// pass counts n bytes of a direction, and waits until they are within the rate.
func (m *metered) pass(n int, count *atomic.Int64, b *bucket) error {
	count.Add(int64(n))
	rate := m.account.user.Load().Rate
	if rate > 0 {
		if wait := b.take(n, rate); wait > 0 {
			t := time.NewTimer(wait)
			defer t.Stop()
			select {
			case <-t.C:
			case <-m.gone:
				return errRevoked
			}
		}
	}
	if m.account.over() {
		m.Reset() // both directions end
		return errQuota
	}
	return nil
}

// chunk is how much may pass in one piece: with a small rate little, so that the streams of
// a user take turns.
func (m *metered) chunk() int {
	const least, most = 2 << 10, 64 << 10
	if rate := m.account.user.Load().Rate; rate > 0 {
		return int(min(max(rate/64, least), most))
	}
	return most
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p[:min(len(p), m.chunk())])
	if n > 0 {
		if err := m.pass(n, &m.account.in, &m.account.up); err != nil {
			return 0, err
		}
	}
	return n, err
}

func (m *metered) Write(p []byte) (n int, err error) {
	for part := range slices.Chunk(p, m.chunk()) {
		if err := m.pass(len(part), &m.account.out, &m.account.down); err != nil {
			return n, err
		}
		k, err := m.Conn.Write(part)
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

// Socket says that the kernel can't move the bytes by itself: they would not be counted.
func (m *metered) Socket() stream.Socket {
	s := m.Conn.Socket()
	s.Plain = false
	return s
}

func (m *metered) Close() error {
	m.once.Do(func() { close(m.gone) })
	return m.Conn.Close()
}

func (m *metered) Reset() {
	m.once.Do(func() { close(m.gone) })
	m.Conn.Reset()
}
