//go:build unix

package adapter

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// TestStart has every way in which a client child can fail to get ready.
func TestStart(t *testing.T) {
	exited := func(err error) bool { _, ok := errors.AsType[*ExitError](err); return ok }
	is := func(target error) func(error) bool {
		return func(err error) bool { return errors.Is(err, target) }
	}
	proxy := mustURL("socks5://127.0.0.1:1080")
	tests := []struct {
		role    string
		want    func(error) bool
		stage   Stage
		message string
		change  func(*ClientConfig)
	}{
		{role: "exits", want: exited, stage: StageVersion},
		{role: "exits with words", want: exited, stage: StageVersion},
		{role: "killed", want: exited, stage: StageVersion},
		{role: "exits after version", want: exited, stage: StageMethods},
		{role: "exits after version", want: exited, stage: StageProxy, change: func(c *ClientConfig) { c.Proxy = proxy }},
		{role: "exits after method", want: exited, stage: StageMethods},
		{role: "version-error", want: is(ErrVersion), stage: StageVersion, message: "no-version"},
		{role: "version 2", want: is(ErrVersion), stage: StageVersion, message: "2"},
		{role: "env-error", want: is(ErrEnvironment), stage: StageEnvironment, message: "no such variable"},
		{role: "proxy-error", want: is(ErrProxy), stage: StageProxy, message: "not that one", change: func(c *ClientConfig) { c.Proxy = proxy }},
		{role: "unconfirmed proxy", want: is(ErrProxyUnconfirmed), stage: StageProxy, change: func(c *ClientConfig) { c.Proxy = proxy }},
		{role: "all fail", want: is(ErrNoMethods), stage: StageMethods, change: func(c *ClientConfig) { c.Transports = []string{"fake", "broken"} }},
		{role: "all fail", want: is(ErrRefused), stage: StageMethods},
		{role: "no method", want: is(ErrNoMethods), stage: StageMethods},
		{role: "no method", want: is(ErrNotAnnounced), stage: StageMethods},
		{role: "not loopback", want: is(ErrNotLoopback), stage: StageMethods},
		{role: "short cmethod", want: is(ErrProtocol), stage: StageMethods},
		{role: "cmethod with a name", want: is(ErrProtocol), stage: StageMethods},
		{role: "cmethod none", want: is(ErrProtocol), stage: StageMethods},
		{role: "method before version", want: is(ErrProtocol), stage: StageVersion},
		{role: "closes stdout", want: is(ErrOutputClosed), stage: StageVersion},
	}
	for _, tt := range tests {
		t.Run(tt.role, func(t *testing.T) {
			h := newHarness(t)
			cfg := ClientConfig{Config: h.config(tt.role), Transports: []string{"fake"}}
			if tt.change != nil {
				tt.change(&cfg)
			}
			a := NewClient(cfg)
			err := a.Start(t.Context())
			failure, ok := errors.AsType[*StartError](err)
			if !ok {
				t.Fatalf("start: %v, want a StartError", err)
			}
			if !tt.want(err) || failure.Stage != tt.stage || failure.Message != tt.message {
				t.Errorf("start: %v, stage %q, message %q", err, failure.Stage, failure.Message)
			}
			if got := h.wait(a); got != err {
				t.Errorf("wait: %v, want what start returned", got)
			}
			if a.Err() != err {
				t.Errorf("err: %v", a.Err())
			}
			if err := a.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if _, err := a.DialTransport(t.Context(), "fake", "192.0.2.1:1", nil); !errors.Is(err, ErrNotStarted) {
				t.Errorf("dial: %v", err)
			}
			if tt.role == "exits with words" {
				if len(failure.Stderr) != tailLines || failure.Stderr[tailLines-1] != "word 29" {
					t.Errorf("stderr %q", failure.Stderr)
				}
				if text := err.Error(); !strings.Contains(text, `"word 27" "word 28" "word 29"`) || strings.Contains(text, "word 26") {
					t.Errorf("text %s", text)
				}
			}
		})
	}
}

// TestStartTimeout has the children that never say what is awaited.
func TestStartTimeout(t *testing.T) {
	stages := []Stage{StageVersion, StageProxy, StageMethods}
	for role, stage := range map[string]Stage{
		"silent":               StageVersion,
		"silent after version": StageProxy,
		"silent after proxy":   StageMethods,
		"no newline":           StageProxy,
	} {
		t.Run(role, func(t *testing.T) {
			h := newHarness(t)
			cfg := ClientConfig{Config: h.config(role), Transports: []string{"fake"}, Proxy: mustURL("http://127.0.0.1:1")}
			cfg.StartTimeout = 300 * time.Millisecond
			if testing.Short() || stage == StageVersion {
				cfg.StartTimeout = 50 * time.Millisecond
			}
			err := NewClient(cfg).Start(t.Context())
			failure, ok := errors.AsType[*StartError](err)
			if !ok || !errors.Is(err, ErrStartTimeout) {
				t.Fatalf("start: %v", err)
			}
			// On a machine that is busy the child may not have come that far.
			if at := slices.Index(stages, failure.Stage); at < 0 || at > slices.Index(stages, stage) {
				t.Errorf("stage %q, want %q", failure.Stage, stage)
			}
		})
	}
}

// TestStartInterrupted ends starts from outside, by context and by Close, at
// every stage.
func TestStartInterrupted(t *testing.T) {
	for _, role := range []string{"silent", "silent after version", "silent after proxy", "never ready, ignores everything"} {
		t.Run(role+"/context", func(t *testing.T) {
			h := newHarness(t)
			cfg := h.config(role)
			if role == "never ready, ignores everything" {
				cfg.StopGrace = 50 * time.Millisecond
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cfg.OnEvent = func(Event) { cancel() } // "armed"
			a := NewClient(ClientConfig{Config: cfg, Transports: []string{"fake"}, Proxy: mustURL("http://127.0.0.1:1")})
			if err := a.Start(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("start: %v", err)
			}
		})
		t.Run(role+"/close", func(t *testing.T) {
			h := newHarness(t)
			cfg := h.config(role)
			cfg.StopGrace = 50 * time.Millisecond
			armed := make(chan struct{})
			cfg.OnEvent = func(e Event) {
				if e.Kind == EventStderr {
					close(armed)
				}
			}
			a := NewClient(ClientConfig{Config: cfg, Transports: []string{"fake"}})
			closed := make(chan error)
			go func() {
				<-armed
				closed <- a.Close()
			}()
			if err := a.Start(t.Context()); !errors.Is(err, ErrClosed) {
				t.Errorf("start: %v", err)
			}
			if err := await(t, "close", closed); err != nil {
				t.Errorf("close: %v", err)
			}
			if err := h.wait(a); err != nil {
				t.Errorf("wait: %v", err)
			}
		})
	}
}

// TestStartConfig has what is refused before anything runs.
func TestStartConfig(t *testing.T) {
	h := newHarness(t)
	file := filepath.Join(h.t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		stage  Stage
		change func(*ClientConfig)
	}{
		"no program":          {StageConfig, func(c *ClientConfig) { c.Exec = nil }},
		"program not there":   {StageExec, func(c *ClientConfig) { c.Exec = []string{"/nonexistent/pt"} }},
		"program not in path": {StageExec, func(c *ClientConfig) { c.Exec = []string{"nonexistent-pt"} }},
		"program not a one":   {StageExec, func(c *ClientConfig) { c.Exec = []string{file} }},
		"no transport":        {StageConfig, func(c *ClientConfig) { c.Transports = nil }},
		"transport twice":     {StageConfig, func(c *ClientConfig) { c.Transports = []string{"a", "a"} }},
		"transport name":      {StageConfig, func(c *ClientConfig) { c.Transports = []string{"a-b"} }},
		"transport digit":     {StageConfig, func(c *ClientConfig) { c.Transports = []string{"4obfs"} }},
		"state is a file":     {StageState, func(c *ClientConfig) { c.StateDir = file }},
		"env without =":       {StageConfig, func(c *ClientConfig) { c.Env = []string{"A"} }},
		"env of pt-spec":      {StageConfig, func(c *ClientConfig) { c.Env = []string{"TOR_PT_PROXY=x"} }},
		"env in small":        {StageConfig, func(c *ClientConfig) { c.Env = []string{"tor_pt_proxy=x"} }},
		"env without a name":  {StageConfig, func(c *ClientConfig) { c.Env = []string{"=x"} }},
		"env with a NUL":      {StageConfig, func(c *ClientConfig) { c.Env = []string{"A=x\x00"} }},
		"bind v4":             {StageConfig, func(c *ClientConfig) { c.BindV4 = netip.MustParseAddr("::1") }},
		"bind v6":             {StageConfig, func(c *ClientConfig) { c.BindV6 = netip.MustParseAddr("::ffff:127.0.0.1") }},
		"proxy scheme":        {StageConfig, func(c *ClientConfig) { c.Proxy = mustURL("socks5h://127.0.0.1:1") }},
		"proxy name":          {StageConfig, func(c *ClientConfig) { c.Proxy = mustURL("http://localhost:1") }},
		"proxy port":          {StageConfig, func(c *ClientConfig) { c.Proxy = mustURL("http://127.0.0.1") }},
		"proxy path":          {StageConfig, func(c *ClientConfig) { c.Proxy = mustURL("http://127.0.0.1:1/x") }},
		"proxy password":      {StageConfig, func(c *ClientConfig) { c.Proxy = mustURL("socks4a://a:b@127.0.0.1:1") }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := ClientConfig{Config: h.config("good"), Transports: []string{"fake"}}
			tt.change(&cfg)
			a := NewClient(cfg)
			err := a.Start(t.Context())
			if failure, ok := errors.AsType[*StartError](err); !ok || failure.Stage != tt.stage {
				t.Errorf("start: %v, want stage %q", err, tt.stage)
			}
			if h.wait(a) != err {
				t.Errorf("wait: %v", a.Err())
			}
		})
	}
	t.Run("context is over", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.client("good").Start(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("start: %v", err)
		}
	})
}

// TestReady has the children that get ready in spite of what they say, and
// carry a connection.
func TestReady(t *testing.T) {
	for _, role := range []string{
		"good", "strange lines", "talkative", "nul and bytes", "byte by byte", "long line",
		"floods stdout", "floods stderr", "socks drips",
	} {
		t.Run(role, func(t *testing.T) {
			h := newHarness(t)
			a := h.running(role)
			m, err := a.Method("fake")
			if err != nil || m.Protocol != "socks5" || !strings.HasPrefix(m.Addr, "127.0.0.1:") {
				t.Errorf("method: %+v, %v", m, err)
			}
			if _, err := a.Method("other"); !errors.Is(err, ErrUnknownTransport) {
				t.Errorf("other method: %v", err)
			}
			c, _ := h.dial(a, "192.0.2.1:443", nil)
			echoes(t, c)
			if a.Err() != nil {
				t.Errorf("err: %v", a.Err())
			}
		})
	}
}

// TestPartly has children where one transport of two comes up.
func TestPartly(t *testing.T) {
	for role, want := range map[string]error{
		"two, one fails":       ErrRefused,
		"two, one unmentioned": ErrNotAnnounced,
	} {
		t.Run(role, func(t *testing.T) {
			h := newHarness(t)
			cfg := h.config(role)
			cfg.StopGrace = 50 * time.Millisecond
			a := NewClient(ClientConfig{Config: cfg, Transports: []string{"broken", "fake"}})
			h.start(a)
			_, err := a.Method("broken")
			failure, ok := errors.AsType[*MethodError](err)
			if !ok || !errors.Is(err, want) || failure.Transport != "broken" {
				t.Errorf("method: %v", err)
			}
			if want == ErrRefused && failure.Message != "no such thing" {
				t.Errorf("message %q", failure.Message)
			}
			_, err = a.DialTransport(t.Context(), "broken", "192.0.2.1:1", nil)
			if dial, ok := errors.AsType[*DialError](err); !ok || dial.Stage != StagePrepare || !errors.Is(err, want) {
				t.Errorf("dial: %v", err)
			}
			c, _ := h.dial(a, "192.0.2.1:443", nil)
			echoes(t, c)
		})
	}
}

// TestEnvironment holds that a child gets exactly what it should.
func TestEnvironment(t *testing.T) {
	h := newHarness(t)
	t.Setenv("TOR_PT_SERVER_TRANSPORTS", "leaked")
	t.Setenv("LANG", "C.UTF-8")
	t.Setenv("HTTPS_PROXY", "http://192.0.2.9:1")
	t.Setenv("SSL_CERT_FILE", "/etc/ours.pem")
	t.Setenv("SSL_CERT_DIR", "/etc/certs")
	for _, name := range certificateNames[2:] {
		t.Setenv(name, "/etc/"+name)
	}
	state := filepath.Join(t.TempDir(), "a", "state")
	cfg := ClientConfig{Config: h.config("environment"), Transports: []string{"fake", "other"}}
	cfg.StateDir = state
	cfg.Env = append(cfg.Env, "SSL_CERT_DIR=/etc/other", "EMPTY=")
	cfg.BindV4, cfg.BindV6 = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	cfg.Proxy = mustURL("http://u:p@192.0.2.8:3128/") // a program of another hand may refuse the slash
	a := NewClient(cfg)
	h.start(a)
	c, err := a.DialTransport(t.Context(), "fake", "192.0.2.1:443", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got []string
	if err := json.Unmarshal([]byte(readLine(t, c)), &got); err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(cfg.Env, []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.Getenv("TMPDIR"), "LANG=C.UTF-8",
		"SSL_CERT_FILE=/etc/ours.pem", "NIX_SSL_CERT_FILE=/etc/NIX_SSL_CERT_FILE", "CURL_CA_BUNDLE=/etc/CURL_CA_BUNDLE",
		"REQUESTS_CA_BUNDLE=/etc/REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS=/etc/NODE_EXTRA_CA_CERTS",
		"TOR_PT_MANAGED_TRANSPORT_VER=1",
		"TOR_PT_STATE_LOCATION=" + state,
		"TOR_PT_EXIT_ON_STDIN_CLOSE=1",
		"TOR_PT_OUTBOUND_BIND_ADDRESS_V4=192.0.2.7",
		"TOR_PT_OUTBOUND_BIND_ADDRESS_V6=[2001:db8::7]",
		"TOR_PT_CLIENT_TRANSPORTS=fake,other",
		"TOR_PT_PROXY=http://u:p@192.0.2.8:3128",
	})
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("environment\n%q, want\n%q", got, want)
	}
	info, err := os.Stat(state)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v %v", info, err)
	}
	h.end(a)
	if _, err := os.Stat(state); err != nil {
		t.Errorf("a state directory that was given has to stay: %v", err)
	}
}

// TestProxyConfirmed starts with an upstream proxy.
func TestProxyConfirmed(t *testing.T) {
	h := newHarness(t)
	a := NewClient(ClientConfig{
		Config: h.config("proxy"), Transports: []string{"fake"}, Proxy: mustURL("socks5://user:pass@127.0.0.1:1080"),
	})
	h.start(a)
	c, _ := h.dial(a, "192.0.2.1:443", nil)
	echoes(t, c)
}

// TestEvents expects LOG and STATUS in order, before and after DONE.
func TestEvents(t *testing.T) {
	h := newHarness(t)
	h.running("talkative")
	h.waitEvent("the last", func(e Event) bool { return e.Kind == EventStatus && e.Transport == "" })
	want := []Event{
		{Kind: EventLog, Severity: "debug", Message: `before "VERSION"`},
		{Kind: EventStatus, Transport: "fake", Params: Args{{"STEP", "1"}, {"WORDS", "two words"}}},
		{Kind: EventLog, Severity: "error", Message: "after\nDONE"},
		{Kind: EventLog, Severity: "notice", Message: "plain"},
		{Kind: EventStatus, Params: Args{{"X", "1"}}},
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !reflect.DeepEqual(h.events, want) {
		t.Errorf("events %+v", h.events)
	}
}

// TestFlood expects that what is too much is dropped, and counted.
func TestFlood(t *testing.T) {
	h := newHarness(t)
	a := h.running("floods stderr")
	h.end(a)
	dropped := h.waitEvent("dropped", func(e Event) bool { return e.Kind == EventDropped })
	h.mu.Lock()
	defer h.mu.Unlock()
	delivered, total := 0, 0
	for _, e := range h.events {
		if e.Kind == EventDropped {
			total += e.Count
		} else {
			delivered++
			total++
		}
	}
	if dropped.Count <= 0 || total != 200_000 || delivered == total {
		t.Errorf("%d events delivered, %d lines in all", delivered, total)
	}
}

// TestArgs holds that args reach the child as pt-spec has them.
func TestArgs(t *testing.T) {
	h := newHarness(t)
	a := h.running("good")
	tests := map[string]struct {
		addr string
		args Args
		want session
	}{
		"none":      {"192.0.2.1:443", nil, session{Addr: "192.0.2.1:443", NoAuth: true}},
		"one":       {"192.0.2.1:443", Args{{"k", "v"}}, session{User: "k=v", Password: "\x00", Addr: "192.0.2.1:443"}},
		"escapes":   {"192.0.2.1:443", Args{{"a=b", `c;d\e`}, {"k", ""}}, session{User: `a\=b=c\;d\\e;k=`, Password: "\x00", Addr: "192.0.2.1:443"}},
		"255":       {"192.0.2.1:443", Args{{"k", strings.Repeat("v", 253)}}, session{User: "k=" + strings.Repeat("v", 253), Password: "\x00", Addr: "192.0.2.1:443"}},
		"256":       {"192.0.2.1:443", Args{{"k", strings.Repeat("v", 254)}}, session{User: "k=" + strings.Repeat("v", 253), Password: "v", Addr: "192.0.2.1:443"}},
		"in escape": {"192.0.2.1:443", Args{{"k", strings.Repeat("v", 252) + ";"}}, session{User: "k=" + strings.Repeat("v", 252) + `\`, Password: ";", Addr: "192.0.2.1:443"}},
		"510":       {"192.0.2.1:443", Args{{"k", strings.Repeat("v", 508)}}, session{User: "k=" + strings.Repeat("v", 253), Password: strings.Repeat("v", 255), Addr: "192.0.2.1:443"}},
		"ipv6":      {"[2001:db8::1]:1", nil, session{Addr: "[2001:db8::1]:1", NoAuth: true}},
		"mapped":    {"[::ffff:192.0.2.1]:1", nil, session{Addr: "192.0.2.1:1", NoAuth: true}},
		"name":      {"bridge.example:65535", nil, session{Addr: "bridge.example:65535", NoAuth: true}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, got := h.dial(a, tt.addr, tt.args); got != tt.want {
				t.Errorf("session %+v, want %+v", got, tt.want)
			}
		})
	}
	for name, tt := range map[string]struct {
		addr string
		args Args
	}{
		"511":       {"192.0.2.1:443", Args{{"k", strings.Repeat("v", 509)}}},
		"no key":    {"192.0.2.1:443", Args{{"", "v"}}},
		"nul":       {"192.0.2.1:443", Args{{"k", "\x00"}}},
		"no port":   {"192.0.2.1", nil},
		"big port":  {"192.0.2.1:65536", nil},
		"zone":      {"[fe80::1%eth0]:1", nil},
		"no host":   {":1", nil},
		"long host": {strings.Repeat("a", 256) + ":1", nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := a.DialTransport(t.Context(), "fake", tt.addr, tt.args)
			if err == nil {
				c.Close()
			}
			if dial, ok := errors.AsType[*DialError](err); !ok || dial.Stage != StagePrepare {
				t.Errorf("dial: %v", err)
			}
			if name == "511" && !errors.Is(err, ErrArgsTooLong) {
				t.Errorf("dial: %v", err)
			}
		})
	}
}

// TestSOCKS4 dials through a program that speaks SOCKS4.
func TestSOCKS4(t *testing.T) {
	h := newHarness(t)
	a := h.running("socks4")
	c, s := h.dial(a, "192.0.2.1:443", Args{{"k", "v;"}})
	if want := (session{User: `k=v\;`, Addr: "192.0.2.1:443"}); s != want {
		t.Errorf("session %+v, want %+v", s, want)
	}
	echoes(t, c)
	for _, addr := range []string{"[2001:db8::1]:1", "bridge.example:1"} {
		_, err := a.DialTransport(t.Context(), "fake", addr, nil)
		if dial, ok := errors.AsType[*DialError](err); !ok || dial.Stage != StagePrepare {
			t.Errorf("dial %s: %v", addr, err)
		}
	}
	_, err := a.DialTransport(t.Context(), "fake", "198.51.100.1:1", nil)
	if reply, ok := errors.AsType[Reply](err); !ok || reply != 0x5b {
		t.Errorf("dial: %v", err)
	}
}

// socksRole is the role of a listener with raw answers.
func socksRole(answers []string) string {
	var list [][]byte
	for _, answer := range answers {
		list = append(list, []byte(answer))
	}
	role, _ := json.Marshal(list)
	return "socks " + string(role)
}

// TestDialFailures has every wrong answer a SOCKS listener can give.
func TestDialFailures(t *testing.T) {
	args := Args{{"k", "v"}}
	isReply := func(want Reply) func(error) bool {
		return func(err error) bool { got, ok := errors.AsType[Reply](err); return ok && got == want }
	}
	malformed := func(err error) bool { return errors.Is(err, errSOCKS) }
	says := func(text string) func(error) bool {
		return func(err error) bool { return strings.Contains(err.Error(), text) }
	}
	tests := map[string]struct {
		answers []string
		args    Args
		stage   DialStage
		want    func(error) bool
	}{
		"refused":              {[]string{"\x05\x00", "\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"}, nil, StageRequest, isReply(ReplyConnectionRefused)},
		"general failure":      {[]string{"\x05\x00", "\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"}, nil, StageRequest, isReply(ReplyGeneralFailure)},
		"short refusal":        {[]string{"\x05\x00", "\x05\x01"}, nil, StageRequest, isReply(ReplyGeneralFailure)},
		"odd reply":            {[]string{"\x05\x00", "\x05\xf0"}, nil, StageRequest, isReply(0xf0)},
		"no method":            {[]string{"\x05\xff"}, nil, StageGreeting, malformed},
		"no method with args":  {[]string{"\x05\xff"}, args, StageGreeting, says("takes no args")},
		"method not offered":   {[]string{"\x05\x00"}, args, StageGreeting, malformed},
		"http":                 {[]string{"HTTP/1.1 400 Bad Request\r\n\r\n"}, nil, StageGreeting, malformed},
		"args refused":         {[]string{"\x05\x02", "\x01\x01"}, args, StageAuth, says("args refused")},
		"wrong subnegotiation": {[]string{"\x05\x02", "\x05\x00"}, args, StageAuth, malformed},
		"wrong reply version":  {[]string{"\x05\x00", "\x04\x00"}, nil, StageRequest, malformed},
		"wrong address type":   {[]string{"\x05\x00", "\x05\x00\x00\x02"}, nil, StageRequest, malformed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			a := h.running(socksRole(tt.answers))
			_, err := a.DialTransport(t.Context(), "fake", "192.0.2.1:443", tt.args)
			dial, ok := errors.AsType[*DialError](err)
			if !ok || dial.Stage != tt.stage || !tt.want(err) {
				t.Errorf("dial: %v", err)
			}
		})
	}
	// A listener that is gone: nobody answers.
	t.Run("gone", func(t *testing.T) {
		h := newHarness(t)
		a := h.running("done and gone")
		if err := h.wait(a); err == nil {
			t.Error("an end that nobody asked for is an error")
		}
		_, err := a.DialTransport(t.Context(), "fake", "192.0.2.1:443", nil)
		if exit, ok := errors.AsType[*ExitError](err); !ok || exit.State.ExitCode() != 4 {
			t.Errorf("dial: %v", err)
		}
	})
	t.Run("dies", func(t *testing.T) {
		h := newHarness(t)
		a := h.running("good")
		c, _ := h.dial(a, "192.0.2.1:443", nil)
		io.WriteString(c, "die\n")
		_, err := c.Read(make([]byte, 1))
		if err == nil {
			t.Error("read from a dead program")
		}
		await(t, "end", a.Done())
		exit, ok := errors.AsType[*ExitError](a.Err())
		if !ok || exit.State.ExitCode() != 3 {
			t.Errorf("err: %v", a.Err())
		}
	})
}

// TestDialCancel cancels a dial that waits at each of its steps.
func TestDialCancel(t *testing.T) {
	for _, answers := range [][]string{
		{"hang"}, {"\x05\x02", "hang"}, {"\x05\x02", "\x01\x00", "hang"}, {"\x05\x02", "\x01\x00", "\x05\x00\x00"},
	} {
		t.Run("", func(t *testing.T) {
			h := newHarness(t)
			a := h.running(socksRole(answers))
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := a.DialTransport(ctx, "fake", "192.0.2.1:443", Args{{"k", "v"}})
			if _, ok := errors.AsType[*DialError](err); !ok || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("dial: %v", err)
			}
			ctx, cancel = context.WithCancel(t.Context())
			cancel()
			if _, err = a.DialTransport(ctx, "fake", "192.0.2.1:443", nil); !errors.Is(err, context.Canceled) {
				t.Errorf("dial: %v", err)
			}
		})
	}
}

// TestDialManyAtOnce dials from many goroutines.
func TestDialManyAtOnce(t *testing.T) {
	h := newHarness(t)
	a := h.running("good")
	errs := make(chan error, 200)
	for range cap(errs) {
		go func() {
			c, err := a.DialTransport(t.Context(), "fake", "192.0.2.1:443", Args{{"k", "v"}})
			if err == nil {
				err = c.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := await(t, "dial", errs); err != nil {
			t.Error(err)
		}
	}
}

// TestConn holds what a connection shows and what it must not.
func TestConn(t *testing.T) {
	h := newHarness(t)
	a := h.running("good")
	c, _ := h.dial(a, "192.0.2.1:443", nil)
	if _, ok := c.(interface{ CloseWrite() error }); ok {
		t.Error("a connection into a transport program must not be half-closable")
	}
	if _, ok := c.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn); !ok {
		t.Error("a relay cannot splice")
	}
	if c.(*Conn).ClientInfo() != (ClientInfo{}) {
		t.Error("client info on a dialled connection")
	}
	if m, _ := a.Method("fake"); c.RemoteAddr().String() != m.Addr || c.LocalAddr().String() == m.Addr {
		t.Errorf("addresses %v %v", c.LocalAddr(), c.RemoteAddr())
	}
	if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if err := errors.Join(c.SetDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(c, struct{ io.Reader }{strings.NewReader("hello\n")}); n != 6 || err != nil {
		t.Errorf("copy: %d %v", n, err)
	}
	if got := readLine(t, c); got != "hello" {
		t.Errorf("echo %q", got)
	}
	c.Write([]byte("die\n"))
	var rest strings.Builder
	if _, err := io.Copy(&rest, c); err == nil && rest.Len() > 0 {
		t.Errorf("rest %q", rest.String())
	}
	await(t, "end", a.Done())
}

// TestStop climbs the ladder, rung by rung.
func TestStop(t *testing.T) {
	tests := map[string]struct {
		role   string
		grace  time.Duration
		signal syscall.Signal // that ended it, 0 if none
	}{
		"stdin":   {"good", 20 * time.Second, 0},
		"sigterm": {"ignores stdin", 2 * time.Second, 0}, // within it the child must get to run
		"sigkill": {"ignores everything", 50 * time.Millisecond, syscall.SIGKILL},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			cfg := h.config(tt.role)
			cfg.StopGrace = tt.grace
			a := NewClient(ClientConfig{Config: cfg, Transports: []string{"fake"}})
			h.start(a)
			if tt.role == "ignores everything" {
				defer h.gone(h.fellow())
			}
			pid := a.Pid()
			if err := syscall.Kill(pid, 0); err != nil {
				t.Errorf("pid %d: %v", pid, err)
			}
			if group, err := syscall.Getpgid(pid); err != nil || group != pid {
				t.Errorf("process group %d %v", group, err)
			}
			var closers []chan error
			for range 3 {
				done := make(chan error, 1)
				closers = append(closers, done)
				go func() { done <- a.Close() }()
			}
			for _, done := range closers {
				if err := await(t, "close", done); err != nil {
					t.Errorf("close: %v", err)
				}
			}
			if err := h.wait(a); err != nil {
				t.Errorf("wait: %v", err)
			}
			status := a.proc.cmd.ProcessState.Sys().(syscall.WaitStatus)
			if got := status.Signal(); status.Signaled() != (tt.signal != 0) || status.Signaled() && got != tt.signal {
				t.Errorf("status %v", a.proc.cmd.ProcessState)
			}
			if err := a.Drain(); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("drain: %v", err)
			}
			if _, err := a.DialTransport(t.Context(), "fake", "192.0.2.1:1", nil); !errors.Is(err, ErrClosed) {
				t.Errorf("dial: %v", err)
			}
		})
	}
}

// TestUnused has adapters that are closed or used before they are started.
func TestUnused(t *testing.T) {
	h := newHarness(t)
	a := h.client("good")
	if _, err := a.Method("fake"); !errors.Is(err, ErrNotStarted) {
		t.Errorf("method: %v", err)
	}
	if err := a.Drain(); !errors.Is(err, ErrNotStarted) {
		t.Errorf("drain: %v", err)
	}
	if a.Pid() != 0 || a.Err() != nil {
		t.Errorf("pid %d, err %v", a.Pid(), a.Err())
	}
	if err := errors.Join(a.Close(), a.Close(), h.wait(a)); err != nil {
		t.Error(err)
	}
	if err := a.Start(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("start: %v", err)
	}
	b := h.running("good")
	if err := b.Start(t.Context()); !errors.Is(err, ErrStarted) {
		t.Errorf("start: %v", err)
	}
	if _, err := b.Method("fake"); err != nil {
		t.Errorf("a second start broke the first: %v", err)
	}
}

// TestCallbackCloses closes from within a callback.
func TestCallbackCloses(t *testing.T) {
	h := newHarness(t)
	cfg := h.config("talkative")
	ready := make(chan *ClientAdapter, 1)
	cfg.OnEvent = func(e Event) {
		if e.Severity == "notice" {
			(<-ready).Close()
		}
	}
	a := NewClient(ClientConfig{Config: cfg, Transports: []string{"fake"}})
	h.start(a)
	ready <- a
	if err := h.wait(a); err != nil {
		t.Errorf("wait: %v", err)
	}
}

// TestGrandchildren has programs that fork.
func TestGrandchildren(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		h := newHarness(t)
		a := h.running("forks")
		fellow := h.fellow()
		h.end(a)
		h.gone(fellow)
	})
	t.Run("left alone", func(t *testing.T) {
		h := newHarness(t)
		a := h.running("forks and leaves")
		fellow := h.fellow()
		if _, err := a.proc.stdin.Write([]byte("go")); err != nil {
			t.Fatal(err)
		}
		if _, ok := errors.AsType[*ExitError](h.wait(a)); !ok {
			t.Errorf("wait: %v", a.Err())
		}
		h.gone(fellow)
	})
	t.Run("out of reach", func(t *testing.T) {
		// It holds both pipes open; the end must not wait for it.
		h := newHarness(t)
		a := h.running("forks a session")
		fellow := h.fellow()
		h.end(a)
		fellow.(*net.TCPConn).CloseWrite()
		h.gone(fellow)
	})
}

// TestDrain lets a live connection finish and takes no new one.
func TestDrain(t *testing.T) {
	h := newHarness(t)
	a := h.running("drains")
	c, _ := h.dial(a, "192.0.2.1:443", nil)
	if err := a.Drain(); err != nil {
		t.Fatal(err)
	}
	h.waitEvent("draining", onStderr("draining"))
	echoes(t, c)
	c.Close()
	if err := h.wait(a); err != nil {
		t.Errorf("wait: %v", err)
	}
}

// TestRelativeStateDir holds that the child gets an absolute path.
func TestRelativeStateDir(t *testing.T) {
	t.Chdir(t.TempDir())
	path, temporary, err := makeStateDir("state")
	if err != nil || temporary || !filepath.IsAbs(path) {
		t.Errorf("%q %v %v", path, temporary, err)
	}
}

// TestStandardLibraryOnly holds the fence around this package and its codec.
func TestStandardLibraryOnly(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(string(out)); !slices.Equal(got, []string{"ptgate/adapter/socks5", "ptgate/adapter"}) {
		t.Errorf("depends on %v", got)
	}
}
