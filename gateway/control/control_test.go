package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptgate/gateway/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAsk(t *testing.T) {
	path := control.Path(t.TempDir(), "/etc/ptgate/ptgate.toml")
	if _, err := control.Status(t.Context(), path); !errors.Is(err, control.ErrNotRunning) {
		t.Fatalf("nobody there: %v", err)
	}
	var bad error
	s, err := control.Serve(path, control.Answers{Status: func() any { return map[string]int{"answer": 42} }, Reload: func(context.Context) error { return bad },
		Users: func() any { return []string{"ann"} }, ReadUsers: func(string) (bool, error) { return false, bad },
		Rotate: func(_ context.Context, names []string, until time.Time) error {
			return fmt.Errorf("%q %v", names, until.UTC())
		}})
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", fi.Mode(), err)
	}
	if b, err := control.Status(t.Context(), path); err != nil || string(b) != "{\n  \"answer\": 42\n}\n" {
		t.Errorf("status %q, %v", b, err)
	}
	if err := control.Reload(t.Context(), path); err != nil {
		t.Error(err)
	}
	bad = errors.New("ptgate.toml:3: no")
	if err := control.Reload(t.Context(), path); err == nil || err.Error() != bad.Error() {
		t.Errorf("reload: %v", err)
	}
	if b, err := control.Users(t.Context(), path); err != nil || string(b) != "[\n  \"ann\"\n]\n" {
		t.Errorf("users %q, %v", b, err)
	}
	if _, err := control.ReadUsers(t.Context(), path, ""); err == nil || err.Error() != bad.Error() {
		t.Errorf("users: %v", err)
	}
	until := time.Date(2027, 1, 2, 3, 4, 5, 6, time.UTC)
	if err := control.Rotate(t.Context(), path, []string{"obfs4 [::1]:443", "a&b"}, until); err == nil || err.Error() != `["obfs4 [::1]:443" "a&b"] 2027-01-02 03:04:05.000000006 +0000 UTC` {
		t.Errorf("rotate: %v", err)
	}
	if _, err := control.Serve(path, control.Answers{}); !errors.Is(err, control.ErrRunning) {
		t.Errorf("a second server: %v", err)
	}
	s.Close()
	if _, err := control.Status(t.Context(), path); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// A ptgate of an earlier version does not read its users because of somebody else's, and what
// it does not know is no riddle.
func TestEarlierVersion(t *testing.T) {
	path := control.Path(t.TempDir(), "x")
	s, err := control.Serve(path, control.Answers{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	mux := http.NewServeMux()
	mux.HandleFunc("POST /users", func(http.ResponseWriter, *http.Request) { asked++ })
	earlier := httptest.NewUnstartedServer(mux)
	_ = earlier.Listener.Close()
	earlier.Listener = ln
	earlier.Start()
	defer earlier.Close()
	if read, err := control.ReadUsers(t.Context(), path, "/etc/ptgate/users"); read || err != nil || asked != 0 {
		t.Errorf("%v, %v, asked %d times", read, err, asked)
	}
	if read, err := control.ReadUsers(t.Context(), path, ""); !read || err != nil || asked != 1 {
		t.Errorf("%v, %v, asked %d times", read, err, asked)
	}
	if err := control.Rotate(t.Context(), path, nil, time.Now()); err == nil || !strings.Contains(err.Error(), "restart it") {
		t.Errorf("rotate: %v", err)
	}
}

// A killed process leaves its socket behind.
func TestLeftOver(t *testing.T) {
	path := control.Path(t.TempDir(), "x")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	s, err := control.Serve(path, control.Answers{Status: func() any { return 1 }})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	empty(t, filepath.Dir(path))
}

// status is what a server says of itself.
type status struct {
	Name     string
	Stopping bool `json:"stopping"`
}

func ask(t *testing.T, path string) string {
	t.Helper()
	b, err := control.Status(t.Context(), path)
	var s status
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		t.Error(err)
	}
	return s.Name
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// One that stops answers until its end, unless another has come in its place; then
// it leaves that one's socket alone, and the link that both have.
func TestHandOver(t *testing.T) {
	dir, known := t.TempDir(), t.TempDir()
	path, link := control.Path(dir, "x"), control.Path(known, "x")
	var stopping atomic.Bool
	first, err := control.Serve(path, control.Answers{Status: func() any { return status{"first", stopping.Load()} }})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Link(link); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Serve(path, control.Answers{}); !errors.Is(err, control.ErrRunning) {
		t.Fatalf("beside one that runs: %v", err)
	}
	stopping.Store(true)
	if got := ask(t, link); got != "first" {
		t.Errorf("while the first one stops, %q answers", got)
	}
	second, err := control.Serve(path, control.Answers{Status: func() any { return status{Name: "second"} }})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Link(link); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, path); got != "second" {
		t.Errorf("after the second one has come, %q answers", got)
	}
	first.Close()
	for _, p := range []string{path, link} {
		if got := ask(t, p); got != "second" {
			t.Errorf("after the first one's end, %q answers on %s", got, p)
		}
	}
	second.Close()
	empty(t, dir)
	empty(t, known)
}

// A new state directory, while one that had another stops.
func TestHandOverOfLink(t *testing.T) {
	known := t.TempDir()
	link := control.Path(known, "x")
	serve := func(dir, name string, stopping bool) *control.Server {
		t.Helper()
		s, err := control.Serve(control.Path(dir, "x"), control.Answers{Status: func() any { return status{name, stopping} }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := serve(t.TempDir(), "first", true)
	if err := first.Link(link); err != nil {
		t.Fatal(err)
	}
	second := serve(t.TempDir(), "second", false)
	if err := second.Link(link); err != nil {
		t.Fatal(err)
	}
	third := serve(t.TempDir(), "third", false)
	if err := third.Link(link); !errors.Is(err, control.ErrRunning) {
		t.Errorf("a link to one that runs was taken: %v", err)
	}
	third.Close()
	first.Close()
	if got := ask(t, link); got != "second" {
		t.Errorf("%q answers", got)
	}
	second.Close()
	empty(t, known)
	// What is served where the link was has the place.
	first = serve(t.TempDir(), "first", true)
	if err := first.Link(link); err != nil {
		t.Fatal(err)
	}
	second = serve(known, "second", false)
	first.Close()
	if got := ask(t, link); got != "second" {
		t.Errorf("%q answers", got)
	}
	second.Close()
	empty(t, known)
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "none"), filepath.Join(dir, "left"), filepath.Join(dir, "link"), filepath.Join(dir, "here")}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: paths[1], Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if got, err := control.Find(t.Context(), paths...); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("nobody is there: %q, %v", got, err)
	}
	s, err := control.Serve(paths[3], control.Answers{Status: func() any { return 1 }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := control.Find(t.Context(), paths...); got != paths[3] || err != nil {
		t.Errorf("found %q, %v", got, err)
	}
	if err := s.Link(paths[2]); err != nil {
		t.Fatal(err)
	}
	if got, err := control.Find(t.Context(), paths...); got != paths[2] || err != nil {
		t.Errorf("found %q, %v", got, err)
	}
	if os.Getuid() != 0 {
		return // nobody else can give a link to another user
	}
	if err := os.Lchown(paths[2], 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if got, err := control.Find(t.Context(), paths...); got != paths[3] || err != nil {
		t.Errorf("by another user's link: %q, %v", got, err)
	}
}

// A reload ends with whoever asked for it, and with the server.
func TestReloadEnds(t *testing.T) {
	path := control.Path(t.TempDir(), "x")
	begun := make(chan struct{})
	ended := make(chan struct{}, 2)
	s, err := control.Serve(path, control.Answers{Reload: func(ctx context.Context) error {
		begun <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	asked := make(chan error)
	for _, end := range []func(){leave, s.Close} {
		go func() { asked <- control.Reload(ctx, path) }()
		<-begun
		end()
		if err := <-asked; err == nil {
			t.Error("a reload that was given up counts as one")
		}
		<-ended
		ctx = t.Context()
	}
}

func Example() {
	dir, _ := os.MkdirTemp("", "")
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "control.sock")
	s, err := control.Serve(path, control.Answers{Status: func() any { return "fine" }, Reload: func(context.Context) error { return nil }})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	b, err := control.Status(context.Background(), path)
	fmt.Printf("%s%v\n", b, err)
	// Output:
	// "fine"
	// <nil>
}
