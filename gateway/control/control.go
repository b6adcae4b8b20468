// Package control is how `ptgate status` and `ptgate reload` reach a running
// ptgate: HTTP on a Unix socket in its state directory, which only its own user
// may enter. It listens on no network.
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
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Path is the socket of the ptgate that runs the configuration file config,
// which is absolute. Two that share a state directory have one each.
func Path(stateDir, config string) string {
	sum := sha256.Sum256([]byte(config))
	return filepath.Join(stateDir, "control-"+hex.EncodeToString(sum[:4])+".sock")
}

// A Server answers on a socket until Close.
type Server struct {
	http http.Server
	done chan struct{}
}

// Serve listens on path. status's value goes out as JSON; reload's error text, one
// line a problem, to whoever asked.
func Serve(path string, status func() any, reload func() error) (*Server, error) {
	// A socket that nobody answers on is left over from a process that was killed.
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: another ptgate runs this configuration", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.Encode(status())
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if err := reload(); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	s := &Server{done: make(chan struct{}), http: http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}}
	go func() {
		defer close(s.done)
		s.http.Serve(ln)
	}()
	return s, nil
}

// Close ends the server and takes the socket away.
func (s *Server) Close() {
	s.http.Close()
	<-s.done
}

// ErrNotRunning says that nobody answers on the socket.
var ErrNotRunning = errors.New("no ptgate runs this configuration")

// Status asks for the status, as JSON.
func Status(ctx context.Context, path string) ([]byte, error) {
	return ask(ctx, path, http.MethodGet, "/status")
}

// Reload asks for a reload. Its error is the running ptgate's own.
func Reload(ctx context.Context, path string) error {
	_, err := ask(ctx, path, http.MethodPost, "/reload")
	return err
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
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(strings.TrimSpace(string(b)))
	}
	return b, nil
}
