package credentials

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
)

func hash(t testing.TB, password string) string {
	t.Helper()
	b, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const (
	near = "127.0.0.1"
	one  = "192.0.2.1"
	two  = "2001:db8::"
)

func TestValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		users := map[string]string{"alice": "secret", "bob": "", "carol": hash(t, "secret"), "dave": strings.Replace(hash(t, "pass word"), "$2a$", "$2y$", 1)}
		for _, tt := range []struct {
			users          map[string]string
			user, password string
			want           bool
		}{
			{users, "alice", "secret", true},
			{users, "bob", "", true},
			{users, "carol", "secret", true},
			{users, "dave", "pass word", true},
			{users, "alice", "secreT", false},
			{users, "alice", "", false},
			{users, "alice", "secret and more", false},
			{users, "bob", "secret", false},
			{users, "carol", "Secret", false},
			{users, "carol", users["carol"], false}, // the hash is no password
			{users, "mallory", "", false},
			{users, "mallory", "secret", false},
			{users, "Alice", "secret", false},
			{users, "", "", false},
			{nil, "", "", false},
		} {
			for _, client := range []string{"", near, "::1", one, two} {
				for range 2 {
					begun := time.Now()
					got := g.Valid(t.Context(), tt.users, client, tt.user, tt.password)
					if got != tt.want {
						t.Errorf("%q, %q of %q: %v", tt.user, tt.password, client, got)
					}
					// A right one has its answer at once, a wrong one after the pause.
					if took := time.Since(begun); took != map[bool]time.Duration{true: 0, false: pause}[tt.want] {
						t.Errorf("%q, %q of %q: %v", tt.user, tt.password, client, took)
					}
				}
			}
		}
		if right := 4 * 3; len(g.turns) != 0 || len(g.right) != right { // on loopback all are one
			t.Errorf("%d turns and %d right ones are kept", len(g.turns), len(g.right))
		}
	})
}

// guess makes n guesses at a time as client, until ctx ends.
func guess(ctx context.Context, g *Guard, users map[string]string, client string, n int) (wait func()) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for j := 0; ctx.Err() == nil; j++ {
				if g.Valid(ctx, users, client, "alice", fmt.Sprint("guess ", i, j)) {
					panic("a wrong password is right")
				}
			}
		})
	}
	return wg.Wait
}

// TestGuessing: an address has one guess a second, however many it makes at once, and
// however soon it gives up. Nobody else waits for it.
func TestGuessing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		users := map[string]string{"alice": "secret", "carol": "other"}
		if !g.Valid(t.Context(), users, one, "carol", "other") {
			t.Error("carol is kept out")
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait := guess(ctx, g, users, one, 1000)
		for range 20 { // seconds
			<-time.After(time.Second)
			synctest.Wait()
			begun := time.Now()
			for _, client := range []string{near, "", two, "192.0.2.2"} {
				if !g.Valid(ctx, users, client, "alice", "secret") {
					t.Errorf("alice is kept out at %q", client)
				}
			}
			// She was let in before, from the guesser's address.
			if !g.Valid(ctx, users, one, "carol", "other") {
				t.Error("carol is kept out")
			}
			if took := time.Since(begun); took != 0 {
				t.Errorf("somebody else waits for %v", took)
			}
		}
		g.mu.Lock()
		if len(g.turns) > 1000+1 || len(g.right) > 10 { // a turn for each guess, and one for the address
			t.Errorf("%d turns and %d right ones are kept", len(g.turns), len(g.right))
		}
		g.mu.Unlock()
		cancel()
		wait()
		if len(g.turns) != 0 {
			t.Errorf("%d turns are kept", len(g.turns))
		}
	})
}

// TestOneAtATime: the guesses of an address that are checked are one a second, however
// many come and whenever they come. The others have the same answer later, and nothing
// was checked for them.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		users := map[string]string{"alice": "secret"}
		var checked, given atomic.Int64
		var wg sync.WaitGroup
		const seconds, each = 60, 50
		for i := range seconds * each {
			wg.Go(func() {
				begun := time.Now()
				g.Valid(t.Context(), users, one, "alice", fmt.Sprint(i))
				switch took := time.Since(begun); {
				case took == patience:
					given.Add(1)
				case took >= pause && took <= patience+pause:
					checked.Add(1)
				default:
					t.Errorf("an answer after %v", took)
				}
			})
			<-time.After(time.Second / each)
		}
		wg.Wait()
		if n := checked.Load(); n < seconds || n > seconds+7 || n+given.Load() != seconds*each {
			t.Errorf("%d were checked and %d were not, in %d seconds", n, given.Load(), seconds)
		}
		if !g.Valid(t.Context(), users, one, "alice", "secret") {
			t.Error("the right one is kept out after the attack")
		}
	})
}

// TestSameWrongPassword: a program that has an old password gets its answers after the
// pause, over however many connections, and nobody else on loopback waits for it.
func TestSameWrongPassword(t *testing.T) {
	for _, client := range []string{near, one} {
		for password, user := range map[string]string{"secret": "alice", hash(t, "secret"): "alice", "other": "mallory"} {
			synctest.Test(t, func(t *testing.T) {
				g := NewGuard()
				users := map[string]string{"alice": password}
				var wg sync.WaitGroup
				old := func() {
					for range 50 {
						wg.Go(func() {
							begun := time.Now()
							if g.Valid(t.Context(), users, client, user, "old") || time.Since(begun) != pause {
								t.Errorf("%s: an answer after %v", client, time.Since(begun))
							}
						})
					}
				}
				old()
				<-time.After(pause / 2)
				old()
				synctest.Wait()
				begun := time.Now()
				if password == "secret" && client == near && (!g.Valid(t.Context(), users, near, "alice", "secret") || time.Since(begun) != 0) {
					t.Errorf("alice waits for %v", time.Since(begun))
				}
				wg.Wait()
				if len(g.turns) != 0 {
					t.Errorf("%d turns are kept", len(g.turns))
				}
				// The table may change.
				users = map[string]string{"alice": "old", "mallory": "old"}
				if !g.Valid(t.Context(), users, client, user, "old") {
					t.Error("what is right now is still wrong")
				}
			})
		}
	}
}

// TestEnd: a wait ends with its context.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		ctx, cancel := context.WithCancel(t.Context())
		wait := guess(ctx, g, map[string]string{"alice": hash(t, "secret")}, one, 100)
		synctest.Wait()
		begun := time.Now()
		cancel()
		wait()
		if took := time.Since(begun); took != 0 {
			t.Errorf("the checks ended after %v", took)
		}
	})
}

// TestHashedOnce: a right password is hashed once, until the table changes.
func TestHashedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		users := map[string]string{"alice": hash(t, "secret")}
		valid := func(want bool, why string) {
			t.Helper()
			if got := g.Valid(t.Context(), users, one, "alice", "secret"); got != want {
				t.Errorf("%s: %v", why, got)
			}
		}
		valid(true, "the first time")
		g.hashing = nil // no hash can be worked out any more
		valid(true, "the second time")
		for _, client := range []string{near, two} {
			if !g.Valid(t.Context(), users, client, "alice", "secret") || g.Valid(t.Context(), users, client, "alice", "Secret") ||
				g.Valid(t.Context(), users, client, "mallory", "secret") {
				t.Errorf("another client, %s, is checked in another way", client)
			}
		}
		users = map[string]string{"alice": hash(t, "changed")}
		valid(false, "with another password in the table")
		users = map[string]string{"bob": "secret"}
		valid(false, "without the user")
		<-time.After(remembered)
		users = map[string]string{"alice": "secret"}
		valid(true, "with the password itself")
	})
}

// TestHashedOnceAtOnce: connections that begin at the same time share one check.
func TestHashedOnceAtOnce(t *testing.T) {
	for _, client := range []string{near, one} {
		synctest.Test(t, func(t *testing.T) {
			g := NewGuard()
			users := map[string]string{"alice": hash(t, "secret")}
			g.hashing = make(chan struct{}) // nobody has room
			var wg sync.WaitGroup
			var right atomic.Int64
			for range 100 {
				wg.Go(func() {
					if g.Valid(t.Context(), users, client, "alice", "secret") {
						right.Add(1)
					}
				})
			}
			synctest.Wait()
			<-g.hashing             // room for one
			g.hashing <- struct{}{} // which has done its work
			wg.Wait()
			if n := right.Load(); n != 100 {
				t.Errorf("%q: %d of 100 are let in", client, n)
			}
		})
	}
}

// TestHashesOfGuesses: many guesses for which hashes have to be worked out make the first
// right login slow, and do not keep it out.
func TestHashesOfGuesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		users := map[string]string{"alice": hash(t, "secret")}
		g.hashing = make(chan struct{}, 1)
		g.compare = func(hash, password []byte) error {
			<-time.After(300 * time.Millisecond)
			return bcrypt.CompareHashAndPassword(hash, password)
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait := guess(ctx, g, users, near, 60)
		synctest.Wait()
		begun := time.Now()
		var right atomic.Int64
		var logins sync.WaitGroup
		for range 5 { // connections of one program
			logins.Go(func() {
				if g.Valid(ctx, users, near, "alice", "secret") {
					right.Add(1)
				}
			})
		}
		logins.Wait()
		if n, took := right.Load(), time.Since(begun); n != 5 || took > hashPatience {
			t.Errorf("%d of 5 are let in, after %v", n, took)
		}
		cancel()
		wait()
	})
}

// TestRemembered: there is a bound, and what was right last stays.
func TestRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard()
		users := map[string]string{}
		for i := range maxRemembered + 100 {
			name := fmt.Sprint("user ", i)
			users[name] = name
			if !g.Valid(t.Context(), users, one, name, name) {
				t.Fatal(name)
			}
			<-time.After(time.Millisecond)
		}
		if len(g.right) != maxRemembered {
			t.Errorf("%d are remembered", len(g.right))
		}
		if !g.remembers(g.digest("pair", one, "user 1000", "user 1000", "user 1000")) || g.remembers(g.digest("pair", one, "user 0", "user 0", "user 0")) {
			t.Error("the wrong ones are forgotten")
		}
	})
}

func TestCheck(t *testing.T) {
	whole := hash(t, "x")
	costly := whole[:4] + "15" + whole[6:]
	for password, want := range map[string]string{
		"": "", "secret": "", "$1$x": "", "$2": "", whole: "", strings.Replace(whole, "$2a", "$2y", 1): "",
		whole[:59]: "is none", whole + "x": "is none", "$2b$": "is none", "$2b$xx" + whole[6:]: "is none",
		costly: "too long", "ann:" + whole: "behind the colon", "ann:$2b$x": "",
	} {
		err := Check(password)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", password, err)
		}
	}
}

func TestNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::", "[fe80::1%eth0]:5": "fe80::",
	} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			continue // there is no such interface
		}
		if got := Network(a); got != want {
			t.Errorf("%s: %q", addr, got)
		}
	}
	if got := Network(&net.UnixAddr{Name: "/x"}); got != "" {
		t.Errorf("a socket without an address: %q", got)
	}
}

func Example() {
	g := NewGuard()
	users := map[string]string{"alice": "secret"}
	fmt.Println(g.Valid(context.Background(), users, "192.0.2.1", "alice", "secret"))
	// Output: true
}

// A random secret needs no slow hash, and what the table has is of no use as a password.
func TestDigest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := NewSecret()
		if len(secret) != 26 || secret == NewSecret() {
			t.Errorf("secret %q", secret)
		}
		digest := Digest(secret)
		g := NewGuard()
		g.compare = func([]byte, []byte) error { t.Error("a slow hash is worked out"); return nil }
		users := map[string]string{"ann": digest}
		for password, want := range map[string]bool{secret: true, digest: false, strings.TrimPrefix(digest, digestPrefix): false, "": false} {
			if got := g.Valid(t.Context(), users, "", "ann", password); got != want {
				t.Errorf("%q: %v", password, got)
			}
		}
		if err := Check(digest); err != nil {
			t.Error(err)
		}
		for _, bad := range []string{digest[:70], strings.ToUpper(digest), "$sha256$", digest + "0"} {
			if IsDigest(bad) || strings.HasPrefix(bad, digestPrefix) && Check(bad) == nil {
				t.Errorf("%q is taken for a digest", bad)
			}
		}
	})
}
