package website

import (
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"

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

// newDecoy makes the handler that everybody sees. If it is a server, that is told, too.
func newDecoy(text string, logger *slog.Logger) (http.Handler, *origin, error) {
	if err := CheckDecoy(text); err != nil {
		return nil, nil, err
	}
	switch {
	case text == "":
		return http.NotFoundHandler(), nil, nil
	case !strings.Contains(text, "://"):
		return http.FileServer(http.Dir(text)), nil, nil
	}
	o, err := newOrigin(text, logger)
	if err != nil {
		return nil, nil, err
	}
	return o.handler(), o, nil
}
