package admin

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDocument: README.md names each field of the status.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## The status in JSON\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string][]string{} // the words in quotes of each row
	for line := range strings.Lines(section) {
		if cells := strings.SplitN(line, " | ", 2); len(cells) == 2 {
			for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cells[1], -1) {
				name := strings.Trim(cells[0], "| `")
				rows[name] = append(rows[name], m[1])
			}
		}
	}
	var look func(part string, in reflect.Type)
	look = func(part string, in reflect.Type) {
		for in.Kind() == reflect.Slice || in.Kind() == reflect.Pointer {
			in = in.Elem()
		}
		if in.Kind() != reflect.Struct || in == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range in.NumField() {
			name, _, _ := strings.Cut(in.Field(i).Tag.Get("json"), ",")
			below := in.Field(i).Type
			if name == "-" {
				continue
			}
			if !slices.Contains(rows[part], name) && rows[name] == nil {
				t.Errorf("README.md has no %q of %q", name, part)
			}
			look(name, below)
		}
	}
	look("the status", reflect.TypeFor[Status]())
}
