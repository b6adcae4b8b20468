package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate makes a certificate for www.example.com and its key, in PEM.
func certificate(t *testing.T, ends time.Time) (cert, key []byte) {
	t.Helper()
	return certificateFor(t, ends, "www.example.com")
}

func certificateFor(t *testing.T, ends time.Time, hosts ...string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: hosts, NotBefore: ends.Add(-time.Hour), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})
}

// What the server would stumble over is found in the files, too, and has its line.
func TestCertificates(t *testing.T) {
	cert, key := certificate(t, time.Now().Add(time.Hour))
	_, otherKey := certificate(t, time.Now())
	expired, expiredKey := certificate(t, time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC))
	early, earlyKey := certificate(t, time.Date(2100, 2, 4, 4, 5, 6, 0, time.UTC))
	without := func(b []byte, at int) []byte { return append(append([]byte(nil), b[:at]...), b[at+1:]...) }
	for _, tt := range []struct {
		name      string
		cert, key []byte
		mode      os.FileMode
		url, want string
	}{
		{name: "fine", cert: cert, key: key},
		{name: "a chain", cert: append(append([]byte("subject=x\n"), cert...), cert...), key: key},
		{name: "one file", cert: append(append([]byte(nil), key...), cert...), key: append(append([]byte(nil), cert...), key...)},
		{name: "another key", cert: cert, key: otherKey, want: ":7: serve 1: tls: key: key.pem: the key is not that of the certificate: name the two that belong together"},
		{name: "a key one byte short", cert: cert, key: without(key, 60), want: ":7: serve 1: tls: key: key.pem: the private key is damaged, or not whole: copy it anew"},
		{name: "a key without its end", cert: cert, key: key[:len(key)-2], want: ":7: serve 1: tls: key: key.pem: the private key is damaged, or not whole: copy it anew"},
		{name: "no key", cert: cert, key: cert, want: ":7: serve 1: tls: key: key.pem: there is no private key in PEM in it: one begins with -----BEGIN PRIVATE KEY-----"},
		{name: "an empty key", cert: cert, key: []byte{}, want: ":7: serve 1: tls: key: key.pem: there is no private key in PEM in it: one begins with -----BEGIN PRIVATE KEY-----"},
		{name: "a missing key", cert: cert, want: ":7: serve 1: tls: key: key.pem: no such file or directory: correct its name, or make it"},
		{name: "a certificate one byte short", cert: without(cert, 60), key: key, want: ":6: serve 1: tls: cert: cert.pem: the certificate is damaged, or not whole: copy it anew"},
		{name: "a chain with half a certificate", cert: append(append([]byte(nil), cert...), cert[:200]...), key: key,
			want: ":6: serve 1: tls: cert: cert.pem: the certificate is damaged, or not whole: copy it anew"},
		{name: "no certificate", cert: []byte("x"), key: key, want: ":6: serve 1: tls: cert: cert.pem: there is no certificate in PEM in it: one begins with -----BEGIN CERTIFICATE-----"},
		{name: "the wrong way round", cert: key, key: cert, want: ":6: serve 1: tls: cert: cert.pem: there is a private key in it, and no certificate: give cert and key their own files; they may be the wrong way round"},
		{name: "a key with a password", cert: cert, key: pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}),
			want: ":7: serve 1: tls: key: key.pem: the private key has a password, which nobody can give at the start: `openssl pkey -in OLD -out NEW` takes it off"},
		{name: "a missing certificate", key: key, want: ":6: serve 1: tls: cert: cert.pem: no such file or directory: correct its name, or make it"},
		{name: "expired", cert: expired, key: expiredKey, want: ":6: warning: serve 1: tls: cert: cert.pem has expired on 2020-02-03: renew it"},
		{name: "not yet valid", cert: early, key: earlyKey, want: ":6: warning: serve 1: tls: cert: cert.pem is not valid before 2100-02-04: clients refuse it until then; is the clock of this machine right?"},
		{name: "readable", cert: cert, key: key, mode: 0o644, want: ":7: warning: serve 1: tls: key: others can read it (mode 0644): chmod o-rwx key.pem"},
		{name: "another name", cert: cert, key: key, url: "https://other.example.com/path",
			want: `:6: warning: serve 1: tls: cert: cert.pem is not for "other.example.com", the host of url, but for ["www.example.com"]: clients refuse it; get one for that name, or correct url`},
	} {
		dir := t.TempDir()
		put := func(name string, text []byte, mode os.FileMode) {
			if text == nil {
				return
			}
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
			if mode != 0 {
				if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
					t.Fatal(err)
				}
			}
		}
		if tt.url == "" {
			tt.url = "https://www.example.com/path"
		}
		put("cert.pem", tt.cert, 0)
		put("key.pem", tt.key, tt.mode)
		put("ptgate.toml", fmt.Appendf(nil, `[[serve]]
transport = "webtunnel"
bind = "0.0.0.0:443"
options = { url = %q }
[serve.tls]
cert = "cert.pem"
key = "key.pem"
`, tt.url), 0)
		t.Chdir(dir)
		cfg, problems := testLoader.Load("ptgate.toml")
		var got []string
		for _, p := range problems {
			got = append(got, strings.TrimPrefix(p.String(), "ptgate.toml"))
		}
		if text := strings.Join(got, "\n"); text != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, text, tt.want)
		}
		if cfg != nil && (cfg.Serve[0].TrustedHops != 0 || len(cfg.Serve[0].TrustedProxies) > 0 || cfg.Serve[0].Site.CertFile != filepath.Join(dir, "cert.pem")) {
			t.Errorf("%s: %+v", tt.name, cfg.Serve[0])
		}
	}
}

// Without options, the certificate tells the host of the url, and the server makes the path.
func TestWebsiteURL(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, hosts := range map[string][]string{"many": {"*.example.org", "www.example.org", "example.org"}, "wild": {"*.example.org"}, "none": nil} {
		cert, key := certificateFor(t, time.Now().Add(time.Hour), hosts...)
		if err := os.WriteFile(name+".pem", cert, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name+".key", key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ keys, url, problem string }{
		{`bind = "0.0.0.0:443"
			tls = { acme = "www.example.com", email = "" }`, "https://www.example.com", ""},
		{`bind = "0.0.0.0:443"
			tls = { acme = "WWW.Example.com." }
			options = { ver = "0.0.1" }`, "https://www.example.com", ""},
		{`bind = "0.0.0.0:443"
			tls = { cert = "many.pem", key = "many.key" }`, "https://www.example.org", ""},
		{`bind = "0.0.0.0:8443"
			tls = { cert = "many.pem", key = "many.key" }`, "https://www.example.org:8443", ""},
		{`bind = "0.0.0.0:8443"
			public = "www.example.org:443"
			tls = { cert = "many.pem", key = "many.key" }`, "https://www.example.org", ""},
		{`bind = "127.0.0.1:443"
			public = "192.0.2.1:444"
			tls = { cert = "many.pem", key = "many.key" }`, "https://www.example.org:444", ""},
		{`bind = "0.0.0.0:443"
			tls = { cert = "wild.pem", key = "wild.key" }`, "",
			`:4: serve 1: tls: cert: wild.pem is for no single name, but for ["*.example.org"]: add options = { url = "https://www.example.com" } with the name that clients use`},
		{`bind = "0.0.0.0:443"
			tls = { cert = "none.pem", key = "none.key" }`, "",
			`:4: serve 1: tls: cert: none.pem is for no single name: add options = { url = "https://www.example.com" } with the name that clients use`},
		{`bind = "0.0.0.0:443"
			tls = { cert = "gone.pem", key = "none.key" }`, "", ":4: serve 1: tls: cert: gone.pem: no such file or directory: correct its name, or make it"},
		{`bind = "0.0.0.0:443"
			tls = { acme = "192.0.2.1" }`, "", `:4: serve 1: tls: acme: "192.0.2.1" is not a full host name, as in "www.example.com"`},
		{`bind = "0.0.0.0:443"
			tls = { cert = "wild.pem", key = "wild.key" }
			options = { url = "https://a.example.org" }`, "https://a.example.org", ""},
		{`bind = "127.0.0.1:15000"`, "", `:1: serve 1: options: webtunnel needs url, as in url = "https://example.com/secret-path"`},
	} {
		if err := os.WriteFile("ptgate.toml", []byte("[[serve]]\ntransport = \"webtunnel\"\n"+tt.keys), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, problems := testLoader.Load("ptgate.toml")
		got := ""
		for _, p := range problems {
			got += strings.TrimPrefix(p.String(), "ptgate.toml")
		}
		if got != tt.problem {
			t.Errorf("%s: %s, want %s", tt.keys, got, tt.problem)
		}
		if cfg != nil {
			if link, _ := cfg.Serve[0].Options.Get("url"); link != tt.url {
				t.Errorf("%s: %s, want %s", tt.keys, link, tt.url)
			}
		}
	}
}

// A proxy in front is believed only where the file names it.
func TestWebsiteKeys(t *testing.T) {
	path := write(t, "ptgate.toml", `[[serve]]
transport = "webtunnel"
bind = "0.0.0.0:8443"
options = { url = "https://www.example.com/path" }
tls = { acme = "WWW.example.com.", email = "me@example.com", directory = "https://127.0.0.1:14000/dir", http = ":80" }
decoy = "http://127.0.0.1:8080/"
trusted_proxies = ["192.0.2.0/24"]
proxy_from = "127.0.0.1"
forward = "127.0.0.1:22"
proxy_protocol = 1

[limits]
handshake = "3s"
`)
	cfg, problems := testLoader.Load(path)
	if cfg == nil || len(problems) > 0 {
		t.Fatalf("%v", problems)
	}
	s := cfg.Serve[0]
	got := fmt.Sprintf("%+v %d %v %v %v %d", *s.Site, s.TrustedHops, s.TrustedProxies, s.ProxyFrom, s.ProxyWait, s.ProxyProtocol)
	want := "{CertFile: KeyFile: Name:www.example.com Email:me@example.com Directory:https://127.0.0.1:14000/dir CAFile: HTTP:[::]:80 " +
		"Decoy:http://127.0.0.1:8080/} 1 [192.0.2.0/24] [127.0.0.1/32] 3s 1"
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
