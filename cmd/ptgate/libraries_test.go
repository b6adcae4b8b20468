package main

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// What net/http writes on its own goes into our log and nowhere else, and a private
// one has nothing of its text.
func TestLibrariesLog(t *testing.T) {
	var std bytes.Buffer
	log.SetOutput(&std)
	defer log.SetOutput(io.Discard)
	for _, tt := range []struct {
		level   slog.Level
		private bool
		want    string // beginning of the line after the time
	}{
		{slog.LevelInfo, false, ""},
		{slog.LevelDebug, false, `level=DEBUG msg="a library says" library=net/http text="http: superfluous response.WriteHeader call`},
		{slog.LevelDebug, true, `level=DEBUG msg="a library has something to say; log.private keeps it out" library=net/http` + "\n"},
	} {
		var out bytes.Buffer
		private := new(atomic.Bool)
		private.Store(tt.private)
		restore := adoptLibraries(slog.New(newLogHandler("text", tt.level, new(atomic.Bool), &out, false)), private)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			w.WriteHeader(http.StatusOK)
		})}
		done := make(chan error)
		go func() { done <- s.Serve(ln) }()
		tr := &http.Transport{DisableKeepAlives: true}
		req, err := http.NewRequest(http.MethodGet, "http://"+ln.Addr().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		s.Close()
		<-done
		slog.Debug("from the default slog") // below its level, which is Info
		restore()
		_, line, _ := strings.Cut(out.String(), " ")
		if !strings.HasPrefix(line, tt.want) || tt.want == "" && line != "" || strings.Count(line, "\n") > 1 {
			t.Errorf("%v, private %v: %q", tt.level, tt.private, line)
		}
	}
	if std.Len() > 0 {
		t.Errorf("the standard logger wrote %q", &std)
	}
	var out bytes.Buffer
	private := new(atomic.Bool)
	defer adoptLibraries(slog.New(newLogHandler("json", slog.LevelDebug, new(atomic.Bool), &out, false)), private)()
	slog.Info("from the default slog", "key", "value")
	if got := out.String(); !strings.Contains(got, `"library":"ptgate/cmd/ptgate","text":"INFO from the default slog key=value"`) {
		t.Errorf("%s", got)
	}
}
