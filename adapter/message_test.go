package adapter

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func TestCString(t *testing.T) {
	for s, want := range map[string][2]string{
		`""`:                     {"", ""},
		`"a b" c`:                {"a b", " c"},
		`"\"\\\n\r\t\'"`:         {"\"\\\n\r\t'", ""},
		`"\x41\x4a\x4Bg\101\0x"`: {"AJKgA\x00x", ""},
		`"\xg"`:                  {},
		`"\377\400"`:             {"\xff\x20" + "0", ""},
		`"open`:                  {},
		`"open\`:                 {},
		`"open\"`:                {},
		`"\q"`:                   {"q", ""},
	} {
		value, rest, err := cString(s)
		if failed := want == [2]string{}; err == nil && (failed && s != `""` || value != want[0] || rest != want[1]) || err != nil && !failed {
			t.Errorf("%s: %q %q %v, want %q", s, value, rest, err, want)
		}
	}
}

func TestParsePairs(t *testing.T) {
	for s, want := range map[string]Args{
		"":                    nil,
		"a=b":                 {{"a", "b"}},
		` a=b  c="d e" a= `:   {{"a", "b"}, {"c", "d e"}, {"a", ""}},
		`a="b"c`:              nil,
		"a":                   nil,
		"=b":                  nil,
		"a b=c":               nil,
		`a="`:                 nil,
		`MESSAGE=a"b SEV=x=y`: {{"MESSAGE", `a"b`}, {"SEV", "x=y"}},
	} {
		got, err := parsePairs(s)
		if !reflect.DeepEqual(got, want) || (err == nil) != (want != nil || s == "") {
			t.Errorf("%q: %q %v, want %q", s, got, err, want)
		}
	}
}

// TestSeverities maps what a child says to the levels of our log.
func TestSeverities(t *testing.T) {
	for severity, want := range map[string]slog.Level{
		"error": slog.LevelError, "warning": slog.LevelWarn, "notice": slog.LevelInfo,
		"info": slog.LevelDebug, "debug": slog.LevelDebug, "strange": slog.LevelDebug,
	} {
		e, err := parseLog("SEVERITY=" + strings.ToUpper(severity) + ` MESSAGE="x"`)
		if err != nil || e.level() != want {
			t.Errorf("%s: %v %v, want %v", severity, e.level(), err, want)
		}
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, e := range []Event{
		{Kind: EventLog, Severity: "warning", Message: "a"},
		{Kind: EventStatus, Transport: "t", Params: Args{{"k", "v"}}},
		{Kind: EventStderr, Message: "b"},
		{Kind: EventUnknown, Message: "c"},
		{Kind: EventDropped, Count: 3},
	} {
		LogEvent(logger, e)
	}
	for i, line := range strings.Split(strings.TrimSpace(log.String()), "\n") {
		want := []string{
			`level=WARN msg="transport program says" kind=log message=a`,
			`level=DEBUG msg="transport program says" kind=status transport=t status.k=v`,
			`level=DEBUG msg="transport program says" kind=stderr message=b`,
			`level=DEBUG msg="transport program says" kind=unknown message=c`,
			`level=WARN msg="transport program says" kind=dropped count=3`,
		}[i]
		if !strings.HasSuffix(line, want) {
			t.Errorf("line %q, want %q", line, want)
		}
	}
	if EventKind(99).String() != "invalid" {
		t.Error("a kind that is none")
	}
}

// TestEventsBounded puts more than is let through, with a callback that does
// not return, and then again a second later.
func TestEventsBounded(t *testing.T) {
	text := strings.Repeat("x", eventCost)
	const cost = 2 * eventCost
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var got []Event
		q := newEvents(func(e Event) {
			<-gate
			got = append(got, e)
		})
		done := make(chan struct{})
		go func() {
			q.run()
			close(done)
		}()
		put := func(n int) {
			for range n {
				q.put(Event{Kind: EventStderr, Message: text})
			}
			synctest.Wait()
		}
		const burst, each = eventBurst / cost, eventRate / cost
		put(burst + 5) // 5 over the limit
		<-time.After(time.Second)
		put(each + 3)
		<-time.After(time.Second)
		put(each)
		<-time.After(time.Hour)
		put(burst) // the queue is full after 256
		q.close()
		close(gate)
		<-done
		delivered, dropped := 0, 0
		for _, e := range got {
			if e.Kind == EventDropped {
				dropped += e.Count
			} else {
				delivered++
			}
		}
		if delivered+dropped != 2*burst+2*each+8 || dropped < 8 || delivered > burst+eventQueue {
			t.Errorf("%d delivered, %d dropped", delivered, dropped)
		}
		if got[burst].Kind != EventDropped || got[burst].Count != 5 {
			t.Errorf("the loss is not told in its place: %+v", got[burst])
		}
	})
}

// TestVersions offers several versions: the child may choose any of them, and
// no other.
func TestVersions(t *testing.T) {
	for choice, ok := range map[string]bool{"1": true, "1a": true, "2": false, "1,1a": false, "": false} {
		h := newHandshake("CMETHOD", []string{"fake"}, false, func(Event) {})
		h.offered = []string{"1", "1a"}
		h.line("VERSION " + choice)
		h.line("CMETHOD fake socks5 127.0.0.1:1")
		h.line("CMETHODS DONE")
		r := <-h.result
		if ok && r.err != nil || !ok && (r.err == nil || r.err.Err != ErrVersion || r.err.Message != choice) {
			t.Errorf("version %q: %v", choice, r.err)
		}
	}
}

func TestReplies(t *testing.T) {
	for reply, want := range map[Reply]string{
		ReplyGeneralFailure: "socks reply 0x01: general failure", ReplyNotAllowed: "socks reply 0x02: not allowed",
		ReplyNetworkUnreachable: "socks reply 0x03: network unreachable", ReplyHostUnreachable: "socks reply 0x04: host unreachable",
		ReplyConnectionRefused: "socks reply 0x05: connection refused", ReplyTTLExpired: "socks reply 0x06: ttl expired",
		ReplyCommandUnsupported: "socks reply 0x07: command not supported", ReplyAddressUnsupported: "socks reply 0x08: address type not supported",
		0x5b: "socks reply 0x5b: request rejected", 0xf0: "socks reply 0xf0: failure",
	} {
		if reply.Error() != want {
			t.Errorf("%q, want %q", reply.Error(), want)
		}
	}
}

func TestReadLines(t *testing.T) {
	var got []string
	readLines(strings.NewReader("a\n\n\r\nb\r\n0123456789abcdefZZZZ\n0123456789abcdefYYYYYYYYYYYYYYYYYYYYYYYYYYYYYY\nc"), 16, func(s string) { got = append(got, s) })
	want := []string{"a", "b", "0123456789abcdef", "0123456789abcdef", "c"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// FuzzStdout plays whatever a child may write, as a client and as a server.
func FuzzStdout(f *testing.F) {
	f.Add("VERSION 1\nPROXY DONE\nCMETHOD fake socks5 127.0.0.1:1\nCMETHOD-ERROR b x\nCMETHODS DONE\nLOG SEVERITY=error MESSAGE=\"a\\n\"\n")
	f.Add("VERSION 1\nSMETHOD fake 1.2.3.4:5 ARGS:a=b,c=\\,\nSMETHODS DONE\nSTATUS TRANSPORT=x K=\"\\377\"")
	f.Add("ENV-ERROR x\nVERSION-ERROR\nCMETHOD\n\x00")
	f.Fuzz(func(t *testing.T, s string) {
		for _, keyword := range []string{"CMETHOD", "SMETHOD"} {
			for _, proxy := range []bool{false, true} {
				transports := []string{"fake", "b"}
				emit := func(e Event) {
					if !utf8.ValidString(e.Message) || !utf8.ValidString(e.Severity) || !utf8.ValidString(e.Transport) {
						t.Errorf("event %+v", e)
					}
				}
				h := newHandshake(keyword, transports, proxy, emit)
				readLines(strings.NewReader(s), stdoutLine, h.line)
				h.eof()
				r := <-h.result
				if (r.err == nil) == (r.methods == nil) {
					t.Fatalf("result %+v", r)
				}
				if r.err != nil {
					if r.err.Error() == "" || r.err.Stage == "" || r.err.Err == nil {
						t.Errorf("error %+v", r.err)
					}
					continue
				}
				if proxy && !strings.Contains(s, "PROXY DONE") {
					t.Error("ready without its proxy")
				}
				works := false
				for _, name := range transports {
					m, ok := r.methods[name]
					if !ok {
						t.Errorf("nothing of %s", name)
					}
					works = works || m.err == nil
				}
				if !works || len(r.methods) != len(transports) {
					t.Errorf("methods %+v", r.methods)
				}
			}
		}
	})
}

// scripted is a peer that says what it says, whatever it hears.
type scripted struct {
	io.Reader
	heard bytes.Buffer
}

func (s *scripted) Write(b []byte) (int, error) { return s.heard.Write(b) }

// FuzzSOCKSReply plays whatever a child may answer to a dial.
func FuzzSOCKSReply(f *testing.F) {
	f.Add([]byte("\x05\x02\x01\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x50rest"), true, false)
	f.Add([]byte("\x05\x00\x05\x00\x00\x03\x03abc\x00\x50rest"), false, false)
	f.Add([]byte("\x00\x5a\x00\x00\x00\x00\x00\x00rest"), false, true)
	f.Add([]byte("\x05\x00\x05\x05"), false, false)
	f.Fuzz(func(t *testing.T, answers []byte, withArgs, four bool) {
		protocol, args := "socks5", Args(nil)
		if four {
			protocol = "socks4"
		}
		if withArgs {
			args = Args{{"k", "v"}}
		}
		r, err := newSOCKSRequest(protocol, "192.0.2.1:1", args)
		if err != nil {
			t.Fatal(err)
		}
		input := bytes.NewReader(answers)
		stage, err := r.session(&scripted{Reader: input})
		if stage == "" {
			t.Error("no stage")
		}
		if err != nil {
			return
		}
		// A session that succeeds is as long as it says, not a byte more.
		used := len(answers) - input.Len()
		want := 8
		if !four {
			head := 2
			if withArgs {
				head = 4
			}
			want = head + 4 + map[byte]int{1: 4, 4: 16}[answers[head+3]] + 2
			if answers[head+3] == 3 {
				want += 1 + int(answers[head+4])
			}
		}
		if used != want {
			t.Errorf("%d bytes read of a session of %d", used, want)
		}
	})
}

// FuzzExtORPort plays whatever a peer of the Extended ORPort may send, before
// and after it is authenticated.
func FuzzExtORPort(f *testing.F) {
	f.Add([]byte("\x01" + strings.Repeat("n", 64)))
	f.Add([]byte("\x00\x01\x00\x0b192.0.2.1:5\x00\x02\x00\x05obfs4\x00\x00\x00\x00rest"))
	f.Add([]byte("\x00\x01\x00\x05[::1]\x12\x34\x00\x02xx\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key := newCookie()
		peer := &scripted{Reader: bytes.NewReader(b)}
		if err := key.authenticate(peer); err == nil {
			t.Error("authenticated without the cookie")
		}
		input := bytes.NewReader(b)
		info, err := readCommands(input)
		if used := len(b) - input.Len(); used > maxCommands+4+1<<16 {
			t.Errorf("%d bytes read", used)
		}
		if err != nil {
			return
		}
		if info.Transport != "" && !validTransport(info.Transport) || info.Addr.Addr().Is4In6() {
			t.Errorf("info %+v", info)
		}
		if end := len(b) - input.Len(); !bytes.Contains(b[:end], []byte{0, 0}) {
			t.Error("no DONE")
		}
	})
}

func TestEscape(t *testing.T) {
	for _, tt := range []struct {
		text  string
		limit int
		want  string
	}{
		{"", 9, ""},
		{"plain “text”", 99, "plain “text”"},
		{"\x1b[2J\a\x7f\r\n\t", 99, `\x1b[2J\a\x7f\r\n\t`},
		{"\u009b2J\u0085", 99, `\u009b2J\u0085`}, // C1: CSI and NEL
		{"\x9b2J", 99, `\x9b2J`},                 // the same, where a terminal does not speak UTF-8
		{"\u202eabc\u200b\ufeff", 99, `\u202eabc\u200b\ufeff`},
		{"abcdef", 4, "abcd…"},
		{"a\x1b\x1b\x1b", 6, `a\x1b\x1b…`},
	} {
		if got := Escape(tt.text, tt.limit); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

// TestLogEventEscaped: whatever a child says, no byte reaches the log that commands a
// terminal, whatever the log's format, and the line is short.
func TestLogEventEscaped(t *testing.T) {
	nasty := "\x1b]0;x\a\u009b2J\x9b2J\u202e\r" + strings.Repeat("x", stdoutLine)
	for name, handler := range map[string]func(io.Writer) slog.Handler{
		"text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		"json": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
	} {
		var out bytes.Buffer
		LogEvent(slog.New(handler(&out)), Event{Kind: EventLog, Severity: "error", Message: nasty, Transport: nasty, Params: Args{{nasty, nasty}}})
		text := strings.TrimSuffix(out.String(), "\n")
		if i := strings.IndexFunc(text, unprintable); i >= 0 || !utf8.ValidString(text) {
			t.Errorf("%s: at %d: %q", name, i, text[max(i-20, 0):i+20])
		}
		if len(text) > 6*shown {
			t.Errorf("%s: a line of %d bytes", name, len(text))
		}
	}
}

// TestEventsBytes: a child that never stops talking fills no disk.
func TestEventsBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		q := newEvents(func(e Event) { LogEvent(log, e) })
		done := make(chan struct{})
		go func() {
			q.run()
			close(done)
		}()
		const seconds = 600
		for range seconds {
			for _, length := range []int{0, 10, 100, stderrLine} {
				for range 100 {
					q.put(Event{Kind: EventStderr, Message: strings.Repeat("x", length)})
				}
			}
			synctest.Wait()
			<-time.After(time.Second)
		}
		q.close()
		<-done
		t.Logf("%d bytes a second", out.Len()/seconds)
		if most := 2*eventBurst + 2*seconds*eventRate; out.Len() > most {
			t.Errorf("%d bytes in the log, want at most %d", out.Len(), most)
		}
	})
}

// TestServerArgsPrintable: a bridge line is made of them.
func TestServerArgsPrintable(t *testing.T) {
	for _, bad := range []string{"\x1b[2J", "\u009b2J", "\x9b2J", "\u202e"} {
		if _, m, err := parseSMethod("fake 127.0.0.1:1 ARGS:key=" + bad); !errors.Is(err, ErrProtocol) || m.Args != nil {
			t.Errorf("%q: %v, %v", bad, m, err)
		}
	}
}
