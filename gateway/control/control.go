// Package control connects `ptgate status`, `ptgate reload` and the commands about users to
// a running ptgate. It speaks HTTP on a Unix socket in the state directory, which only ptgate's own user may
// enter. It listens on no network.
//
// The socket exists as long as the process, also while a stopping ptgate waits for open
// connections. A ptgate that is started in that time replaces the socket. The
// configuration file names the state directory, but it may have been edited since
// ptgate was started. So there is also a link to the socket in the default state
// directory.
package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"ptgate/gateway/permissions"
)

// Path returns the path of the socket of the ptgate that runs the configuration file
// config (an absolute path). Two configuration files with the same state directory have
// different sockets.
func Path(stateDir, config string) string {
	return filepath.Join(stateDir, "control-"+ID(config)+".sock")
}

// ID is the part of the names of files in the state directory that tells which configuration
// file (an absolute path) they belong to.
func ID(config string) string {
	sum := sha256.Sum256([]byte(config))
	return hex.EncodeToString(sum[:4])
}

// A Server answers on a socket until Close. The caller of Serve calls Close.
type Server struct {
	http http.Server
	path string
	info fs.FileInfo // of the socket
	link string      // "": none
	done chan struct{}

	mu       sync.Mutex
	closed   bool
	requests sync.WaitGroup // nothing is added when closed
}

// ErrRunning says that another ptgate answers on the socket, and does not stop.
var ErrRunning = errors.New("another ptgate runs this configuration")

// Answers are what a Server asks the ptgate that it belongs to. The texts of errors are sent
// to the client, one line for each problem.
type Answers struct {
	// Status is sent as JSON. If its field "stopping" is true, another ptgate may replace
	// the socket.
	Status func() any
	// Reload has a context that ends when the client has left, and at Close.
	Reload func(context.Context) error
	// Users is sent as JSON: what each user of the exit has used.
	Users func() any
	// ReadUsers reads the file of users again, and tells so. If file is not empty and names
	// another one, it does nothing.
	ReadUsers func(file string) (bool, error)
	// Rotate gives new keys to servers, which are named by name, and ends the present ones
	// at a time.
	Rotate func(ctx context.Context, names []string, until time.Time) error
}

// Serve listens on path. It replaces the socket of a ptgate that stops or was killed;
// if another one runs, the error is ErrRunning.
func Serve(path string, a Answers) (*Server, error) {
	if err := permissions.CheckDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	if err := vacant(path); err != nil {
		return nil, err
	}
	// The socket is made under another name and then renamed, so that a client always
	// finds the old socket or the new one. The other name is not longer than path,
	// because socket names have a limit.
	beside := filepath.Join(filepath.Dir(path), fmt.Sprintf("control-%d.new", os.Getpid()))
	os.Remove(beside) // a process with the same id may have left it
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: beside, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // at its end it has another name
	s := &Server{path: path, done: make(chan struct{})}
	err = os.Chmod(beside, 0o600)
	if err == nil {
		s.info, err = os.Lstat(beside)
	}
	if err == nil {
		err = os.Rename(beside, path)
	}
	if err != nil {
		ln.Close()
		os.Remove(beside)
		return nil, err
	}
	mux := http.NewServeMux()
	get := func(what string, value func() any) {
		mux.HandleFunc("GET "+what, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			e.Encode(value())
		})
	}
	post := func(what string, do func(context.Context, url.Values) (done bool, err error)) {
		mux.HandleFunc("POST "+what, func(w http.ResponseWriter, r *http.Request) {
			switch done, err := do(r.Context(), r.URL.Query()); {
			case err != nil:
				http.Error(w, err.Error(), http.StatusConflict)
			case !done:
				w.WriteHeader(http.StatusNoContent)
			}
		})
	}
	get("/status", a.Status)
	post("/reload", func(ctx context.Context, _ url.Values) (bool, error) { return true, a.Reload(ctx) })
	get("/users", a.Users)
	post("/users", func(context.Context, url.Values) (bool, error) { return a.ReadUsers("") })
	post(usersOf, func(_ context.Context, query url.Values) (bool, error) { return a.ReadUsers(query.Get("file")) })
	post("/rotate", func(ctx context.Context, query url.Values) (bool, error) {
		until, err := time.Parse(time.RFC3339Nano, query.Get("until"))
		if err != nil {
			return false, err
		}
		return true, a.Rotate(ctx, query["serve"], until)
	})
	s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		closed := s.closed
		if !closed {
			s.requests.Add(1)
			defer s.requests.Done()
		}
		s.mu.Unlock()
		if !closed {
			mux.ServeHTTP(w, r)
		}
	})
	s.http.ReadHeaderTimeout = 5 * time.Second
	go func() {
		defer close(s.done)
		s.http.Serve(ln)
	}()
	return s, nil
}

// vacant tells whether the place of a socket can be taken.
func vacant(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if genuine(path) != nil {
		return nil // nobody is there whom to believe
	}
	b, err := Status(ctx, path)
	var other struct{ Stopping bool }
	switch {
	case errors.Is(err, ErrNotRunning):
		return nil
	case err == nil && json.Unmarshal(b, &other) == nil && other.Stopping:
		return nil
	case err == nil:
		err = ErrRunning
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Link makes a link to the socket at path. Close removes it. Call Link once at most.
func (s *Server) Link(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := permissions.CheckDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(path), err)
	}
	if to, err := os.Readlink(path); err != nil || to != s.path {
		if err := vacant(path); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(s.path, path); err != nil {
			return err
		}
	}
	s.link = path
	return nil
}

// Close ends the server and removes the socket, unless another ptgate has replaced it.
// It cancels the requests under way, and waits for their end.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.http.Close()
	<-s.done
	s.requests.Wait()
	if now, err := os.Lstat(s.path); err != nil || !os.SameFile(now, s.info) {
		return
	}
	os.Remove(s.path)
	if to, err := os.Readlink(s.link); err == nil && to == s.path {
		os.Remove(s.link)
	}
}

// ErrNotRunning says that nobody answers on the socket.
var ErrNotRunning = errors.New("no ptgate runs this configuration")

// Status asks the ptgate on the socket path for its status, which is JSON.
func Status(ctx context.Context, path string) ([]byte, error) {
	return ask(ctx, path, http.MethodGet, "/status")
}

// Reload asks the ptgate on the socket path for a reload, and waits for it. The error
// is the one that the running ptgate gives.
func Reload(ctx context.Context, path string) error {
	_, err := ask(ctx, path, http.MethodPost, "/reload")
	return err
}

// Users asks the ptgate on the socket path what each user has used, which is JSON.
func Users(ctx context.Context, path string) ([]byte, error) {
	return ask(ctx, path, http.MethodGet, "/users")
}

// ReadUsers asks the ptgate on the socket path to read its file of users, and waits for it. If
// file is not empty and names another one, nothing happens, and read is false.
func ReadUsers(ctx context.Context, path, file string) (read bool, err error) {
	what := "/users"
	if file != "" {
		what = usersOf + "?" + url.Values{"file": {file}}.Encode()
	}
	_, err = ask(ctx, path, http.MethodPost, what)
	if errors.Is(err, errNothingDone) || file != "" && errors.Is(err, errOtherVersion) {
		return false, nil
	}
	return err == nil, err
}

// Rotate asks the ptgate on the socket path for new keys of servers; see Answers.
func Rotate(ctx context.Context, path string, names []string, until time.Time) error {
	query := url.Values{"serve": names, "until": {until.Format(time.RFC3339Nano)}}
	_, err := ask(ctx, path, http.MethodPost, "/rotate?"+query.Encode())
	return err
}

// usersOf is another request than that for its own file: a ptgate of an earlier version, which
// does not know it, must not read its users because of somebody else's.
const usersOf = "/users/of"

var (
	errNothingDone  = errors.New("it was not asked for what it has")
	errOtherVersion = errors.New("the ptgate that runs is another version, which does not know this request: restart it")
)

// Others returns the sockets in state directories, but for the one at path.
func Others(stateDirs []string, path string) (sockets []string) {
	for _, dir := range stateDirs {
		all, _ := os.ReadDir(dir) // one that is not there has none
		for _, e := range all {
			socket := filepath.Join(dir, e.Name())
			if ok, _ := filepath.Match("control-*.sock", e.Name()); ok && socket != path && genuine(socket) == nil {
				sockets = append(sockets, socket)
			}
		}
	}
	return sockets
}

// Find returns the first path of a socket on which a ptgate answers, or ErrNotRunning.
func Find(ctx context.Context, paths ...string) (string, error) {
	hidden := ""
	for _, path := range paths {
		err := genuine(path)
		if foreign, ok := errors.AsType[*foreignError](err); ok {
			hidden = "; " + foreign.Error()
		}
		if err == nil {
			var d net.Dialer
			var c net.Conn
			if c, err = d.DialContext(ctx, "unix", path); err == nil {
				c.Close()
				return path, nil
			}
		}
		if errors.Is(err, fs.ErrPermission) && hidden == "" {
			hidden = fmt.Sprintf("; %s is another user's: if that one runs ptgate, ask as that user, or as root", filepath.Dir(path))
		}
	}
	return "", fmt.Errorf("%w: nobody answers at %s%s", ErrNotRunning, strings.Join(paths, ", "), hidden)
}

// A foreignError says that a socket is not asked, because another user has made it.
type foreignError struct {
	path  string
	owner uint32
}

func (e *foreignError) Error() string {
	return fmt.Sprintf("%s was made by user %d, who is neither you nor root: it is not asked", e.path, e.owner)
}

// genuine tells whether path is a socket of a user who is trusted, or a link of the same
// user to such a socket. Otherwise another user could plant a socket, or a link to one,
// and say what he likes.
func genuine(path string) error {
	link, err := os.Lstat(path)
	if err != nil {
		return err
	}
	socket, err := os.Stat(path)
	if err != nil {
		return err
	}
	if socket.Mode()&fs.ModeSocket == 0 || !sameOwner(link, socket) {
		return errors.New("no socket of its owner")
	}
	if owner, ok := permissions.Owner(socket); ok && !permissions.Trusted(owner) {
		return &foreignError{path, owner}
	}
	return nil
}

func ask(ctx context.Context, path, method, what string) ([]byte, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+what, nil)
	if err != nil {
		return nil, err
	}
	resp, err := tr.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (socket %s)", ErrNotRunning, path)
	case err != nil:
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return b, nil
	case http.StatusNoContent:
		return nil, errNothingDone
	case http.StatusNotFound:
		return nil, errOtherVersion
	}
	return nil, errors.New(strings.TrimSpace(string(b)))
}
