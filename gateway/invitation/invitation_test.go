package invitation_test

import (
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"reflect"
	"strings"
	"testing"

	"ptgate/adapter"
	"ptgate/gateway/invitation"
	"ptgate/gateway/session"
)

func lines(t testing.TB, texts ...string) (all []adapter.BridgeLine) {
	t.Helper()
	for _, text := range texts {
		l, err := adapter.ParseBridgeLine(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func sample(t testing.TB) *invitation.Invitation {
	return &invitation.Invitation{User: "ann@work", Secret: "abc", Box: session.Box{1, 2, 255}, Lines: lines(t,
		"obfs4 192.0.2.10:443 cert=XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA iat-mode=0",
		"obfs4 [2001:db8::1]:443 cert=XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA iat-mode=0",
		"webtunnel 192.0.2.1:443 url=https://www.example.com/a,b?c=d&e=%20 utls=none")}
}

func TestLink(t *testing.T) {
	want := sample(t)
	link := want.String()
	if i := strings.IndexAny(link, " \t\n~[]'\"`$&?*;|<>(){}!#\\"); i >= 0 {
		t.Errorf("a shell would not leave %q alone", link[i:])
	}
	got, err := invitation.Parse(" " + link + "\n")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q is %+v, %v", link, got, err)
	}
}

// A link that has not come whole is not taken for another one.
func TestDamaged(t *testing.T) {
	link := sample(t).String()
	for i := range link {
		if _, err := invitation.Parse(link[:i]); err == nil {
			t.Errorf("%q is taken", link[:i])
		}
		if b := []byte(link); b[i] != 'x' {
			b[i] = 'x'
			if _, err := invitation.Parse(string(b)); err == nil {
				t.Errorf("%q is taken", b)
			}
		}
	}
	if _, err := invitation.Parse("obfs4 192.0.2.10:443"); err == nil || !strings.Contains(err.Error(), "ptgate://") {
		t.Error(err)
	}
}

// A link is found whatever a mail program, a messenger or a person has put around or into it.
func TestFind(t *testing.T) {
	want := sample(t)
	link := want.String()
	other := sample(t)
	other.User = "bob"
	folded := link[:40] + "\r\n> " + link[40:90] + "\n  " + link[90:len(link)-3] + "\n" + link[len(link)-3:]
	for name, text := range map[string]string{
		"alone":         link + "\n",
		"curly quotes":  "“" + link + "”",
		"text around":   "Hello Ann,\nhere is your link ptgate://...:\n" + link + "\nBye, Bob",
		"full stop":     "It is " + link + ". Bye",
		"quoted":        "> Hello\n> " + folded + "\n> Bye",
		"angles":        "<" + link + ">",
		"spaces":        link[:50] + " " + link[50:],
		"invisible":     "\ufeff" + link[:50] + "\u200b" + link[50:] + "\u2069",
		"twice":         link + "\n" + folded,
		"capitals":      "PTGATE://" + link[len(invitation.Scheme):],
		"capital":       "Ptgate://" + link[len(invitation.Scheme):],
		"punctuation":   "(" + link + "), and then?",
		"angles, fold":  "<" + folded + ">.",
		"mark":          "[" + link + "](" + link + ")",
		"encoded":       quotedPrintable(t, "Here it is – "+link+".\n"),
		"soft spaces":   strings.ReplaceAll(quotedPrintable(t, link), "=\r\n", "= "),
		"soft LF":       strings.ReplaceAll(quotedPrintable(t, link), "\r\n", "\n"),
		"small letters": strings.ReplaceAll(quotedPrintable(t, link), "=3D", "=3d"),
	} {
		if got, err := invitation.Find(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, wrong := range map[string]string{
		"":                              "begins with ptgate://",
		"obfs4 192.0.2.10:443":          "begins with ptgate://",
		link[:len(link)-1]:              "not come whole",
		link[:60] + "…" + link[70:]:     "not come whole",
		link + "\n" + other.String():    "more than one",
		link[:80] + "\n" + link[:80]:    "not come whole",
		strings.ToUpper(link[9:]) + "x": "begins with ptgate://",
		strings.ToUpper(link):           "not come whole",
	} {
		if v, err := invitation.Find(text); err == nil || v != nil || !strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "abc") {
			t.Errorf("%q: %v, %v", text, v, err)
		}
	}
}

// quotedPrintable is a text as mail carries it.
func quotedPrintable(t *testing.T, text string) string {
	t.Helper()
	var b strings.Builder
	w := quotedprintable.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What breaks a link is named with its place.
func TestBroken(t *testing.T) {
	link := sample(t).String()
	for _, tt := range []struct {
		text string
		want invitation.BrokenError
	}{
		{link[:60] + "…", invitation.BrokenError{Rune: '…', Line: 1, Column: 61}},
		{"Hällo\n “" + link[:60] + "–" + link[61:], invitation.BrokenError{Rune: '–', Line: 2, Column: 63}},
		{link[:20] + "\n> " + link[20:40] + "!" + link[41:], invitation.BrokenError{Rune: '!', Line: 2, Column: 23}},
		{"ptgate://...:\n" + link[:60] + "\ufffd", invitation.BrokenError{Rune: '\ufffd', Line: 2, Column: 61}},
	} {
		_, err := invitation.Find(tt.text)
		if got, ok := errors.AsType[*invitation.BrokenError](err); !ok || *got != tt.want || !strings.Contains(err.Error(), "not come whole") {
			t.Errorf("%q: %v", tt.text, err)
		}
	}
	if _, err := invitation.Find(link[:70] + "\n"); err == nil || strings.Contains(err.Error(), "column") {
		t.Error(err)
	}
	if !invitation.In("see pTgate://") || invitation.In("ptgate:/ /") {
		t.Error("In")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample(f).String())
	f.Fuzz(func(t *testing.T, link string) {
		v, err := invitation.Parse(link)
		if err != nil {
			return
		}
		again, err := invitation.Parse(v.String())
		if err != nil || !reflect.DeepEqual(again, v) {
			t.Errorf("%+v, %v", again, err)
		}
	})
}

func ExampleParse() {
	_, err := invitation.Parse("ptgate://alice:secret@0102")
	fmt.Println(err != nil)
	// Output: true
}
