// Package credentials checks user names and passwords, for the fronts that
// applications use and for the exit alike. The table of users has each password as it
// is, or as a bcrypt hash, or as a digest.
//
// A digest is for a secret of 128 random bits, which no person has chosen. Nobody can try
// so many, however fast each try is. So plain SHA-256 is right for it, and costs nothing for
// each stream. A password that a person has chosen needs bcrypt.
//
// Whoever guesses is slowed down. A wrong password has its answer a second later, and an
// address has one guess at a time. So nobody is kept out but those of the guesser's own
// address, and of these nobody whose password was right there within the last hour.
// Clients that share an address with everybody, such as those on loopback, wait for
// nobody. The same guess is checked once for all who make it at the same time: a program
// with an old password has its answers after a second, however many connections it opens.
package credentials

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ptgate/adapter/subnet"
)

const (
	// pause is the time between a wrong password and its answer.
	pause = time.Second
	// patience is how long a check waits for its turn. After that, nothing was checked,
	// and the answer is the same.
	patience = 5 * time.Second
	// hashPatience is how long a check waits for those that work out hashes before it. Many
	// guesses at once then make a right password slow, and not wrong.
	hashPatience = 30 * time.Second
	// remembered is how long a right password needs no other check.
	remembered = time.Hour
	// maxRemembered bounds the right passwords that are remembered.
	maxRemembered = 1024
	// maxCost bounds the time that a check of a hash takes: about a second.
	maxCost = 14
)

// digestPrefix is what a digest begins with. SHA-256 follows, in hex.
const digestPrefix = "$sha256$"

// NewSecret makes a secret of 128 random bits. It has small letters and digits only.
func NewSecret() string {
	var b [16]byte
	rand.Read(b[:])
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// Digest is what a table of users has in place of a secret that NewSecret has made.
func Digest(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return digestPrefix + hex.EncodeToString(sum[:])
}

// IsDigest tells whether password has the form of a digest.
func IsDigest(password string) bool {
	sum, found := strings.CutPrefix(password, digestPrefix)
	raw, err := hex.DecodeString(sum)
	return found && err == nil && len(raw) == sha256.Size && sum == strings.ToLower(sum)
}

// Check returns an error if password begins as a bcrypt hash or as a digest, but can't be
// used as one.
func Check(password string) error {
	if strings.HasPrefix(password, digestPrefix) && !IsDigest(password) {
		return errors.New("begins as a digest, and is none: 64 digits of small hex follow " + digestPrefix)
	}
	if !hashed(password) {
		if _, rest, found := strings.Cut(password, ":"); found && hashed(rest) && Check(rest) == nil {
			return errors.New("is a line of htpasswd: write what is behind the colon only")
		}
		return nil
	}
	cost, err := bcrypt.Cost([]byte(password))
	switch {
	case err != nil || len(password) != 60:
		return errors.New("begins as a bcrypt hash, and is none: copy the whole of it")
	case cost > maxCost:
		return errors.New("is a bcrypt hash that takes too long to check: make one with a cost of 14 at most")
	}
	return nil
}

// hashed tells whether the table has a bcrypt hash for a password.
func hashed(password string) bool {
	for _, version := range []string{"$2a$", "$2b$", "$2y$"} {
		if strings.HasPrefix(password, version) {
			return true
		}
	}
	return false
}

// Network is the client that a Guard slows down: the address of a, or its /64 for IPv6.
// It is "" if a is shared by several clients, or is no address.
func Network(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return ""
	}
	return subnet.Of(tcp.AddrPort().Addr()).Addr().String()
}

// A digest stands for a guess, or for a client. It needs the Guard's key, so nobody can
// choose two things with one digest, and no password stays in memory.
type digest [sha256.Size]byte

// A Guard checks passwords. Make it with NewGuard. It is safe for use by many
// goroutines. What it keeps is bounded by the checks that are under way, and by a
// constant.
type Guard struct {
	key     [32]byte
	hashing chan struct{} // has room for the hashes that may be worked out at the same time
	compare func(hash, password []byte) error

	mu    sync.Mutex
	turns map[digest]*turn
	right map[digest]time.Time // when they are forgotten
	known map[string]digest    // of a hash whose password was given once, that password
}

// A turn is what those wait for who may be guessers, or who make the same guess. Only one
// of them is checked at a time.
type turn struct {
	free  chan struct{} // has room for one
	wrong chan struct{} // closed when the guess was found wrong: nobody has to wait
	uses  int           // those that have it and those that wait
}

func (t *turn) foundWrong() bool {
	select {
	case <-t.wrong:
		return true
	default:
		return false
	}
}

// NewGuard makes a Guard.
func NewGuard() *Guard {
	g := &Guard{
		// Half of the processors are for everything else.
		hashing: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		compare: bcrypt.CompareHashAndPassword,
		turns:   map[digest]*turn{},
		right:   map[digest]time.Time{},
		known:   map[string]digest{},
	}
	rand.Read(g.key[:])
	return g
}

// digest works out a digest. No two lists of parts are taken for one another.
func (g *Guard) digest(parts ...string) (d digest) {
	m := hmac.New(sha256.New, g.key[:])
	for _, p := range parts {
		m.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		m.Write([]byte(p))
	}
	m.Sum(d[:0])
	return d
}

// Valid tells whether users, which maps names to passwords, has this pair. client is who
// asks, as Network or another name of an address; "" or a loopback address: it is one of
// many. If the pair is wrong, Valid returns after a pause. The time that it takes does not
// depend on how much is right. The end of ctx ends the wait; it must not mean that the
// client has left, which would then guess as fast as it leaves.
func (g *Guard) Valid(ctx context.Context, users map[string]string, client, user, password string) bool {
	client = alone(client)
	want, known := users[user]
	pair := g.pair(users, client, user, password)
	if known && g.remembers(pair) {
		return true
	}
	turn, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all, cancel := context.WithTimeout(ctx, patience+hashPatience)
	defer cancel()
	same, leave, ok := g.enter(all, pair)
	if !ok {
		return false
	}
	defer leave()
	if known && g.remembers(pair) { // many connections of a client begin at the same time
		return true
	}
	begun := time.Now()
	if !same.foundWrong() {
		if client != "" {
			_, leave, ok := g.enter(turn, g.digest("client", client))
			if !ok {
				return false
			}
			defer leave()
			begun = time.Now()
		}
		right, checked := g.check(all, users, want, known, password)
		if right {
			g.remember(pair)
			return true
		}
		if checked {
			close(same.wrong)
		}
	}
	after := time.NewTimer(pause - time.Since(begun))
	defer after.Stop()
	select {
	case <-after.C:
	case <-ctx.Done():
	}
	return false
}

// Remembers tells whether Valid returns true without a check.
func (g *Guard) Remembers(users map[string]string, client, user, password string) bool {
	_, known := users[user]
	return known && g.remembers(g.pair(users, alone(client), user, password))
}

// alone is client, or "" for one of many.
func alone(client string) string {
	if ip, err := netip.ParseAddr(client); err == nil && ip.IsLoopback() {
		return ""
	}
	return client
}

// pair stands for what a client gives. With another password in the table it is another
// pair.
func (g *Guard) pair(users map[string]string, client, user, password string) digest {
	want, known := users[user]
	if !known {
		return g.digest("unknown", client, user, password)
	}
	return g.digest("pair", client, user, password, want)
}

// enter waits for the turn of who, or until that was found wrong.
func (g *Guard) enter(ctx context.Context, who digest) (t *turn, leave func(), ok bool) {
	g.mu.Lock()
	t = g.turns[who]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1), wrong: make(chan struct{})}
		g.turns[who] = t
	}
	t.uses++
	g.mu.Unlock()
	forget := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if t.uses--; t.uses == 0 {
			delete(g.turns, who)
		}
	}
	select {
	case t.free <- struct{}{}:
		return t, func() { <-t.free; forget() }, true
	case <-t.wrong:
		return t, forget, true
	case <-ctx.Done():
		forget()
		return nil, nil, false
	}
}

// check compares the password with the one of the table. checked: there was time for it.
func (g *Guard) check(ctx context.Context, users map[string]string, want string, known bool, password string) (right, checked bool) {
	if !known {
		// It takes as long as for somebody who is known.
		for _, other := range users {
			if want = other; hashed(other) {
				break
			}
		}
	}
	if !hashed(want) {
		// The digests are of one length, whatever the passwords' lengths are.
		a, b := want, Digest(password)
		if !IsDigest(want) {
			a = Digest(want)
		}
		return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 && known, true
	}
	// A hash has to be slow only until its password is known. Later, guesses can't keep
	// the processors busy.
	given := g.digest("password", password)
	first, ok := g.passwordOf(want)
	if !ok {
		select {
		case g.hashing <- struct{}{}:
		case <-ctx.Done():
			return false, false
		}
		defer func() { <-g.hashing }()
		if g.compare([]byte(want), []byte(password)) != nil {
			return false, true
		}
		g.learn(want, given)
		first = given
	}
	return subtle.ConstantTimeCompare(first[:], given[:]) == 1 && known, true
}

func (g *Guard) passwordOf(hash string) (d digest, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d, ok = g.known[hash]
	return d, ok
}

func (g *Guard) learn(hash string, password digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= maxRemembered { // of tables before reloads, most of them
		clear(g.known)
	}
	g.known[hash] = password
}

func (g *Guard) remembers(pair digest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, ok := g.right[pair]
	return ok && time.Now().Before(until)
}

// remember keeps a right pair. Where there are too many, those go first that were right
// the longest time ago.
func (g *Guard) remember(pair digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if len(g.right) >= maxRemembered {
		var oldest digest
		first := now.Add(2 * remembered)
		for d, until := range g.right {
			if until.Before(first) {
				oldest, first = d, until
			}
			if !now.Before(until) {
				delete(g.right, d)
			}
		}
		delete(g.right, oldest)
	}
	g.right[pair] = now.Add(remembered)
}
