package users_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"ptgate/gateway/credentials"
	"ptgate/gateway/users"
)

var digest = credentials.Digest("secret")

func TestParse(t *testing.T) {
	text := users.Header + "\n  # more\nann " + digest + "\r\n\n" +
		"bob\t" + digest + " expires=2026-12-31T12:00:00Z rate=1500kbit streams=200 quota=50GB/month allow=*.example.org,10.1.0.0/16:443"
	all, lines, problems := users.Parse(text)
	if len(all) != 2 || len(problems) > 0 {
		t.Fatalf("%v, %v", all, problems)
	}
	if n := strings.Count(users.Header, "\n"); lines[0] != n+3 || lines[1] != n+5 {
		t.Errorf("lines %v", lines)
	}
	b := all[1]
	if all[0].Name != "ann" || len(all[0].Limits()) > 0 || b.Name != "bob" || b.Secret != digest || b.Rate != 187500 || b.Streams != 200 ||
		b.Quota != 50e9 || len(b.Allow) != 2 || !b.Expires.Equal(time.Date(2026, 12, 31, 12, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v", all)
	}
	if again, _, _ := users.Parse(b.String()); !reflect.DeepEqual(again, all[1:]) {
		t.Errorf("%q is %+v", b.String(), again)
	}
	if b.Expired(b.Expires.Add(-1)) || !b.Expired(b.Expires) || all[0].Expired(b.Expires) {
		t.Error("expired at the wrong time")
	}
}

func TestProblems(t *testing.T) {
	for line, want := range map[string]string{
		"ann":                                            "stands $sha256$",
		"ann secret":                                     "stands $sha256$",
		"ann " + digest + "0":                            "stands $sha256$",
		"a:secret " + digest:                             "with a space behind the name",
		"a/b " + digest:                                  "letters, digits",
		"ann " + digest + " secret":                      "behind the digest stand expires=",
		"ann " + digest + " rate=20":                     "20Mbit",
		"ann " + digest + " rate=20MB":                   "20Mbit",
		"ann " + digest + " rate=1kbit":                  "64kbit",
		"ann " + digest + " quota=-1GB":                  "50GB/month",
		"ann " + digest + " quota=9e9TB":                 "50GB/month",
		"ann " + digest + " streams=0":                   "whole number",
		"ann " + digest + " expires=soon":                "2026-12-31",
		"ann " + digest + " allow=x..y":                  "allow: pattern",
		"ann " + digest + " colour=red":                  "neither expires=",
		"ann " + digest + " streams=1 streams=2":         "twice",
		"ann " + digest + "\nann " + digest:              "there already (line 1)",
		"ann " + digest + " quota=99999999999999999999B": "50GB/month",
	} {
		_, _, problems := users.Parse(line)
		if len(problems) != 1 || !strings.Contains(problems[0].Message, want) {
			t.Errorf("%q: %v, want %q", line, problems, want)
		}
		if strings.Contains(strings.ReplaceAll(problems[0].Message, "user's secret", ""), "secret") {
			t.Errorf("%q: %v shows it", line, problems)
		}
	}
}

// Other lines stay as they are.
func TestEdit(t *testing.T) {
	ann, bob := users.User{Name: "ann", Secret: digest}, users.User{Name: "bob", Secret: digest, Streams: 3}
	text := "# of mine\nann   " + digest + " streams=9\n#ann"
	text = users.Put(text, &bob)
	if want := fmt.Sprintf("# of mine\nann   %s streams=9\n#ann\nbob %[1]s streams=3\n", digest); text != want {
		t.Errorf("%q", text)
	}
	text = users.Put(text, &ann)
	if want := fmt.Sprintf("# of mine\nann %s\n#ann\nbob %[1]s streams=3\n", digest); text != want {
		t.Errorf("%q", text)
	}
	text, found := users.Remove(text, "ann")
	if want := fmt.Sprintf("# of mine\n#ann\nbob %s streams=3\n", digest); text != want || !found {
		t.Errorf("%q", text)
	}
	if again, found := users.Remove(text, "ann"); again != text || found {
		t.Errorf("%q", again)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("bob " + digest + " expires=2026-12-31T12:00:00Z rate=1500kbit streams=200 quota=50GB/month allow=*.example.org,10.1.0.0/16:443")
	f.Fuzz(func(t *testing.T, text string) {
		all, lines, _ := users.Parse(text)
		if len(lines) != len(all) {
			t.Fatal(lines)
		}
		for _, u := range all {
			again, _, problems := users.Parse(u.String())
			if len(problems) > 0 || len(again) != 1 || !reflect.DeepEqual(again[0], u) {
				t.Errorf("%+v is written as %q, which is %+v, %v", u, u.String(), again, problems)
			}
		}
	})
}

func ExampleParse() {
	all, _, _ := users.Parse("alice " + credentials.Digest("x4k2…") + " rate=20Mbit streams=200\n")
	fmt.Println(all[0].Name, all[0].Limits())
	// Output: alice [rate=20Mbit streams=200]
}
