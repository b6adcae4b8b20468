package adapter

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// splitEscaped reads what EncodeClient and EncodeServer write, as a transport
// program does: it cuts at each unescaped separator and drops the escapes.
func splitEscaped(s string, separator byte) (parts []string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			b.WriteString(s[i : i+2])
			i++
		case s[i] == separator:
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(s[i])
		}
	}
	return append(parts, b.String())
}

func cutEscaped(s string, separator byte) (before, after string) {
	before = splitEscaped(s, separator)[0]
	return before, s[min(len(s), len(before)+1):]
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// decodeClient is the inverse of EncodeClient.
func decodeClient(s string) (args Args) {
	if s == "" {
		return nil
	}
	for _, part := range splitEscaped(s, ';') {
		key, value := cutEscaped(part, '=')
		args.Add(unescape(key), unescape(value))
	}
	return args
}

// decodeServer is the inverse of EncodeServer.
func decodeServer(s string) (transports []string, args Args) {
	if s == "" {
		return nil, nil
	}
	for _, part := range splitEscaped(s, ';') {
		transport, pair := cutEscaped(part, ':')
		key, value := cutEscaped(pair, '=')
		transports = append(transports, unescape(transport))
		args.Add(unescape(key), unescape(value))
	}
	return transports, args
}

func TestArgsMethods(t *testing.T) {
	var args Args
	if _, ok := args.Get("k"); ok {
		t.Error("got what is not there")
	}
	args.Add("k", "1")
	args.Add("k", "2")
	args.Add("empty", "")
	if v, ok := args.Get("k"); v != "1" || !ok {
		t.Errorf("k %q %v", v, ok)
	}
	if v, ok := args.Get("empty"); v != "" || !ok {
		t.Errorf("empty %q %v", v, ok)
	}
}

func TestCheckClient(t *testing.T) {
	for name, tt := range map[string]struct {
		args Args
		ok   bool
		long bool
	}{
		"none":            {nil, true, false},
		"510":             {Args{{"k", strings.Repeat("v", 508)}}, true, false},
		"511":             {Args{{"k", strings.Repeat("v", 509)}}, false, true},
		"510 by escapes":  {Args{{"k", strings.Repeat(";", 254)}}, true, false},
		"512 by escapes":  {Args{{"k", strings.Repeat(";", 255)}}, false, true},
		"without a key":   {Args{{"", "v"}}, false, false},
		"with a nul":      {Args{{"k", "a\x00"}}, false, false},
		"with a newline":  {Args{{"k", "a\n"}}, true, false},
		"two that exceed": {Args{{"k", strings.Repeat("v", 300)}, {"l", strings.Repeat("v", 300)}}, false, true},
	} {
		err := tt.args.CheckClient()
		if (err == nil) != tt.ok || errors.Is(err, ErrArgsTooLong) != tt.long {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseServerArgs(t *testing.T) {
	for s, want := range map[string]Args{
		"":                 nil,
		",":                nil,
		"k=v":              {{"k", "v"}},
		"k=":               {{"k", ""}},
		"k=v,":             {{"k", "v"}},
		"k=1,l=2,k=3":      {{"k", "1"}, {"l", "2"}, {"k", "3"}},
		"k=a=b==":          {{"k", "a=b=="}},
		`k=a\,b\=c\\,l=\d`: {{"k", `a,b=c\`}, {"l", "d"}},
		`a\=b=c`:           {{"a=b", "c"}},
		"k=\xff\x00":       {{"k", "\xff\x00"}},
	} {
		if got, err := ParseServerArgs(s); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q %v, want %q", s, got, err, want)
		}
	}
	for _, s := range []string{"k", "=v", "k=v,l", `k=v\`, `\`, "k=v,=x"} {
		if got, err := ParseServerArgs(s); err == nil {
			t.Errorf("%q: %q, want an error", s, got)
		}
	}
}

func FuzzServerArgs(f *testing.F) {
	for _, s := range []string{"", "k=v", `cert=a\=b\,c\\,iat-mode=0`, `k=\`, "=", "a,b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args, err := ParseServerArgs(s)
		if err != nil {
			return
		}
		for _, arg := range args {
			if arg.Key == "" {
				t.Errorf("%q: a pair without a key", s)
			}
		}
		// What is parsed can be written as SMETHOD writes it, and read again.
		var b strings.Builder
		for i, arg := range args {
			if i > 0 {
				b.WriteByte(',')
			}
			escape(&b, arg.Key, `\=,`)
			b.WriteByte('=')
			escape(&b, arg.Value, `\=,`)
		}
		if again, err := ParseServerArgs(b.String()); err != nil || !reflect.DeepEqual(again, args) {
			t.Errorf("%q: %q, then %q %v", s, args, again, err)
		}
	})
}

func FuzzOptions(f *testing.F) {
	f.Add("obfs4", "cert", "a=b", "k", `:;\`)
	f.Add("a", `=;:\`, "", "", "x")
	f.Add("a", "k", "v\x00", "", "")
	f.Fuzz(func(t *testing.T, transport, key1, value1, key2, value2 string) {
		args := Args{{key1, value1}}
		if key2 != "" {
			args.Add(key2, value2)
		}
		encoded := args.EncodeClient()
		if got := decodeClient(encoded); !reflect.DeepEqual(got, args) {
			t.Errorf("client: %q gives %q", args, got)
		}
		if err := args.CheckClient(); err == nil && len(encoded) > maxClientArgs {
			t.Errorf("%d bytes pass", len(encoded))
		}
		names, got := decodeServer(args.EncodeServer(transport))
		if !reflect.DeepEqual(got, args) {
			t.Errorf("server: %q gives %q", args, got)
		}
		for _, name := range names {
			if name != transport {
				t.Errorf("server: transport %q became %q", transport, name)
			}
		}
	})
}
