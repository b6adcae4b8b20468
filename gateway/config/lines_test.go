package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ptgate/routes"
)

func TestScanLines(t *testing.T) {
	doc := strings.Join([]string{
		/* 1 */ `# [not.a.table]`,
		/* 2 */ `a = 1 # b = 2`,
		/* 3 */ `"quoted key" = '''`,
		/* 4 */ `c = 3`,
		/* 5 */ `''' `,
		/* 6 */ `d.e . "f.g" = "x\"y" `,
		/* 7 */ `[log] # comment`,
		/* 8 */ `level = """a \`,
		/* 9 */ `  [x] """"`,
		/* 10 */ `dates = [1979-05-27 07:32:00, 1.5e3,`,
		/* 11 */ `  "a]b", # ]`,
		/* 12 */ `  [1, 2],`,
		/* 13 */ `  { k = "}", l = [`,
		/* 14 */ `    3 ] } ]`,
		/* 15 */ ` [ bridge . "to kyo" ] `,
		/* 16 */ `args = { cert = 'x', iat-mode = "0" }`,
		/* 17 */ `[[route]]`,
		/* 18 */ `to = "a"`,
		/* 19 */ `[route.args]`,
		/* 20 */ `x = 1`,
		/* 21 */ `[[route]]`,
		/* 22 */ `args.x = 2`,
		/* 23 */ `[[route.sub]]`,
		/* 24 */ `y = true`,
		/* 25 */ `[[route.sub]]`,
		/* 26 */ `y = false`,
		/* 27 */ `esc."\u0061\t\x62\U00000063\e\"\\" = inf`,
	}, "\r\n")
	lines := scanLines("\ufeff" + doc)
	for path, want := range map[string]int{
		"a": 2, "b": 0, "c": 0, `"quoted key"`: 3, "d": 6, "d.e": 6, `d.e."f.g"`: 6,
		"log": 7, "log.level": 8, "log.dates": 10, "log.dates[3]": 12, "log.dates[4]": 13, "log.dates[4].k": 13, "log.dates[4].l": 13,
		"bridge": 15, `bridge."to kyo"`: 15, `bridge."to kyo".args`: 16, `bridge."to kyo".args.cert`: 16, `bridge."to kyo".args.iat-mode`: 16,
		"route": 17, "route[0]": 17, "route[0].to": 18, "route[0].args": 19, "route[0].args.x": 20,
		"route[1]": 21, "route[1].args": 22, "route[1].args.x": 22, "route[1].to": 0,
		"route[1].sub": 23, "route[1].sub[0]": 23, "route[1].sub[0].y": 24, "route[1].sub[1]": 25, "route[1].sub[1].y": 26,
		`route[1].sub[1].esc."a\tbc\x1b\"\\"`: 27,
	} {
		if got := lines.of(path); got != want {
			t.Errorf("%s: line %d, want %d", path, got, want)
		}
	}
	for i, want := range []int{10, 10, 11, 12, 13, 10} { // of the one beyond the end, the key's
		if got := lines.elem("log.dates", i); got != want {
			t.Errorf("element %d: line %d, want %d", i, got, want)
		}
	}
	if got := lines.elem("log.dates[4].l", 0); got != 14 {
		t.Errorf("inner element: line %d", got)
	}
	if a, b := lines.order(`bridge."to kyo".args.cert`), lines.order(`bridge."to kyo".args.iat-mode`); a >= b {
		t.Errorf("order %d and %d", a, b)
	}
}

// unlined returns the path of the first key or element without a line.
func unlined(lines *keyLines, path string, v any, depth int) string {
	if depth > maxDepth/2 {
		return ""
	}
	switch v := v.(type) {
	case map[string]any:
		for key, v := range v {
			p := join(path, key)
			if lines.of(p) == 0 {
				return p
			}
			if s := unlined(lines, p, v, depth+1); s != "" {
				return s
			}
		}
	case []any:
		for i, v := range v {
			if len(lines.elems[path]) <= i {
				return at(path, i)
			}
			if s := unlined(lines, at(path, i), v, depth+1); s != "" {
				return s
			}
		}
	case []map[string]any:
		for i, v := range v {
			p := at(path, i)
			if lines.of(p) == 0 {
				return p
			}
			if s := unlined(lines, p, v, depth+1); s != "" {
				return s
			}
		}
	}
	return ""
}

// Every key of a document that the TOML library reads has its line.
func FuzzScanLines(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		doc, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(doc))
	}
	for _, doc := range []string{"a=[[[[{b.c=1}]]]]", "\"\\u0000\"=1", "a='''\n'''''", "x=\"\"\"\\\r\n\"\"\"", "[[a.b]]\n[a.b.c]\nd=1", "a={\n b=1,\n}", "ü=1", "a=1\r\n[b]\rc"} {
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		lines := scanLines(doc)
		count := strings.Count(doc, "\n") + 1
		for path, k := range lines.keys {
			if k.line < 1 || k.line > count {
				t.Fatalf("%s at line %d of %d", path, k.line, count)
			}
		}
		m, problem := decode([]byte(doc))
		if problem != nil {
			if problem.Line < 1 || problem.Message == "" {
				t.Fatalf("problem %v", problem)
			}
			return
		}
		if path := unlined(lines, "", m, 0); path != "" {
			t.Fatalf("no line for %s in\n%s", path, doc)
		}
	})
}

// Whatever stands in a file, Load answers: with a configuration or with errors
// that name lines of the file.
func FuzzLoad(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		doc, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(doc), "ads.example.com\n*bad\n")
	}
	f.Fuzz(func(t *testing.T, doc, list string) {
		dir := t.TempDir()
		for name, text := range map[string]string{"ptgate.toml": doc, "list.txt": list} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cfg, problems := testLoader.Load(filepath.Join(dir, "ptgate.toml"))
		if (cfg == nil) != HasError(problems) {
			t.Fatalf("configuration %v with problems %v", cfg, problems)
		}
		for _, p := range problems {
			if p.Line < 1 && !strings.Contains(p.Message, "can't ") || p.Message == "" {
				t.Fatalf("problem %+v", p)
			}
			if p.File == filepath.Join(dir, "ptgate.toml") && p.Line > strings.Count(doc, "\n")+1 {
				t.Fatalf("problem %v beyond the end", p)
			}
		}
		if cfg == nil {
			return
		}
		for rule := range cfg.Routes {
			for i := range cfg.Table.Patterns(rule) {
				m := routes.Match{Rule: rule, Pattern: i}
				if file, line, pattern := cfg.Where(m); file == "" || line < 1 || pattern == "" {
					t.Fatalf("%v is at %s:%d: %q", m, file, line, pattern)
				}
			}
		}
		for _, b := range cfg.Bridges {
			if b.PT == nil || b.Address == "" || b.Transport == "" {
				t.Fatalf("bridge %+v", b)
			}
		}
	})
}

func TestLoadMany(t *testing.T) {
	const n = 20_000
	dir := t.TempDir()
	writeList(t, filepath.Join(dir, "list.txt"), n)
	file := filepath.Join(dir, "ptgate.toml")
	if err := os.WriteFile(file, []byte("[[route]]\nto_file = \"list.txt\"\nvia = \"block\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := mustLoad(t, file)
	if got := cfg.Routes[0].Sources; len(got) != 1 || len(got[0].Runs) != 1 {
		t.Errorf("%d sources for one list without gaps", len(got))
	}
	text, err := os.ReadFile(filepath.Join(dir, "list.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if i == 0 {
			continue
		}
		host := strings.TrimPrefix(strings.TrimPrefix(line, "*"), ".")
		if line[0] == '*' || line[0] == '.' {
			host = "www." + host
		}
		m, ok := cfg.Table.Lookup(target(t, host+":443"))
		if !ok {
			t.Fatalf("%s is not taken", host)
		}
		if _, at, pattern := cfg.Where(m); at != i+1 || pattern != line {
			t.Fatalf("%s is taken by line %d: %s; want line %d: %s", host, at, pattern, i+1, line)
		}
	}
	if m, ok := cfg.Table.Lookup(target(t, "example.com:443")); ok {
		t.Errorf("example.com is taken by %v", m)
	}
}
