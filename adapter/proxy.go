package adapter

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// ParseProxy reads the URL of an upstream proxy. It removes a final slash, since
// not every program accepts one. A URL that CheckProxy refuses is an error. No
// error contains the URL, which may have a password in it.
func ParseProxy(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New(`not a URL: write as in "socks5://127.0.0.1:9050"`)
	}
	if err := CheckProxy(u); err != nil {
		return nil, err
	}
	return proxyURL(u), nil
}

// proxyURL is u, which CheckProxy takes, without its final slash.
func proxyURL(u *url.URL) *url.URL {
	plain := *u
	plain.Path, plain.RawPath = "", ""
	return &plain
}

// CheckProxy returns an error if u can't be an upstream proxy (pt-spec 3.2.2,
// TOR_PT_PROXY). The scheme must be http, socks4a or socks5, and the host a
// literal address with a port. Only user information may be there as well. The
// error contains no user, password or address.
func CheckProxy(u *url.URL) error {
	switch u.Scheme {
	case "http", "socks4a", "socks5":
	default:
		return fmt.Errorf("the scheme is %q: it can be http, socks4a or socks5", u.Scheme)
	}
	at, err := netip.ParseAddrPort(u.Host)
	if err != nil || at.Port() == 0 || at.Addr().Zone() != "" {
		return fmt.Errorf("an IP address and a port are needed, as in \"%s://192.0.2.1:1080\"", u.Scheme)
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return errors.New("nothing may follow the port")
	}
	user := u.User.Username()
	password, hasPassword := u.User.Password()
	switch u.Scheme {
	case "socks4a":
		if hasPassword {
			return errors.New("socks4a knows no password")
		}
		if strings.IndexByte(user, 0) >= 0 || len(user) > 255 {
			return errors.New("the user can't be sent over socks4a")
		}
	case "socks5":
		// RFC 1929 section 2: both are 1 to 255 bytes.
		if u.User != nil && (len(user) < 1 || len(user) > 255 || len(password) < 1 || len(password) > 255) {
			return errors.New("socks5 wants a user and a password of 1 to 255 bytes")
		}
	}
	return nil
}
