package builtin

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"ptgate/adapter/builtin/website"
)

// A process of its own does what a Listener in this process does.
func TestChildOptions(t *testing.T) {
	url := argsOf("url", "https://example.com/x")
	networks := []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		cfg  ServerConfig
		want string
	}{
		{ServerConfig{Transport: nameWebtunnel, TrustedHops: 1}, "url=https://example.com/x"},
		{ServerConfig{Transport: nameWebtunnel, TrustedHops: 2}, "url=https://example.com/x;trusted-hops=2"},
		{ServerConfig{Transport: nameWebtunnel}, "url=https://example.com/x;trusted-hops=0"},
		{ServerConfig{Transport: nameWebtunnel, TrustedHops: 1, TrustedProxies: []netip.Prefix{}}, "url=https://example.com/x;trusted-proxies="},
		{ServerConfig{Transport: nameWebtunnel, TrustedHops: 1, TrustedProxies: networks},
			"url=https://example.com/x;trusted-proxies=::1/128,10.0.0.0/8"},
		{ServerConfig{Transport: nameObfs4}, "url=https://example.com/x"},
		{ServerConfig{Transport: nameObfs4, ProxyFrom: networks, ProxyWait: 3 * time.Second},
			"url=https://example.com/x;proxy-from=::1/128,10.0.0.0/8;proxy-wait=3s"},
		{ServerConfig{Transport: nameWebtunnel, Site: &website.Config{CertFile: "/c;\\=", KeyFile: "/k", Decoy: "http://127.0.0.1:8080"}},
			"url=https://example.com/x;trusted-hops=0;tls-cert=/c\\;\\\\\\=;tls-key=/k;decoy=http://127.0.0.1:8080"},
		{ServerConfig{Transport: nameWebtunnel, Site: &website.Config{Name: "n", Email: "e", Directory: "d", CAFile: "c", HTTP: ":80"}},
			"url=https://example.com/x;trusted-hops=0;tls-acme=n;tls-email=e;tls-directory=d;tls-ca=c;tls-http=:80"},
	} {
		tt.cfg.Options = url
		options := ChildOptions(&tt.cfg)
		if got := options.EncodeClient(); got != tt.want {
			t.Errorf("%+v: %v", tt.cfg, got)
		}
		back := ServerConfig{Transport: tt.cfg.Transport}
		if err := cutOptions(options, &back); err != nil {
			t.Errorf("%s: %v", tt.want, err)
		}
		if tt.cfg.Transport == nameObfs4 {
			back.TrustedHops = 0 // it has none
		}
		if !reflect.DeepEqual(back, tt.cfg) {
			t.Errorf("%s: %+v, want %+v", tt.want, back, tt.cfg)
		}
	}
	for _, wrong := range []string{optionProxyFrom, optionProxyWait, optionTrustedHops, optionTrustedProxies} {
		if err := cutOptions(argsOf(wrong, "x"), new(ServerConfig)); err == nil {
			t.Errorf("%s is anything", wrong)
		}
	}
}
