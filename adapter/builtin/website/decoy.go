package website

import (
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"time"

	"ptgate/adapter"
)

// CheckDecoy returns an error if text can't be the Decoy of a Config.
func CheckDecoy(text string) error {
	if text == "" {
		return nil
	}
	if strings.Contains(text, "://") {
		_, err := upstream(text)
		return err
	}
	info, err := os.Stat(text)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return adapter.Constant("it is a file: name its directory, or a server as in \"http://127.0.0.1:8080\"")
	}
	dir, err := os.Open(text)
	if err != nil {
		return err
	}
	return dir.Close()
}

func upstream(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, adapter.Constant("a server is written as in \"http://127.0.0.1:8080\", with nothing behind the port")
	}
	u.Path = ""
	return u, nil
}

// newDecoy makes the handler that everybody sees, and what ends its connections.
func newDecoy(text string, logger *slog.Logger) (decoy http.Handler, end func(), err error) {
	if err := CheckDecoy(text); err != nil {
		return nil, nil, err
	}
	switch {
	case text == "":
		return http.NotFoundHandler(), func() {}, nil
	case !strings.Contains(text, "://"):
		return http.FileServer(http.Dir(text)), func() {}, nil
	}
	u, err := upstream(text)
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true, // it would add a field to requests, and change answers
	}
	var failures adapter.LogLimit
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host
		},
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				failures.Log(logger, slog.LevelWarn, "the decoy does not answer", "error", adapter.WithoutAddresses(err))
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}, transport.CloseIdleConnections, nil
}
