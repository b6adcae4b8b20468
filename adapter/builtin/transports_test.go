package builtin

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ptgate/adapter"
)

// A row is whole: what it says that a transport can do, the code for it is there.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range Transports() {
		t.Run(row.Name, func(t *testing.T) {
			if seen[row.Name] {
				t.Error("there is a row of that name already")
			}
			seen[row.Name] = true
			if got, known := Lookup(row.Name); !known || got.Name != row.Name {
				t.Errorf("Lookup gives %q, %v", got.Name, known)
			}
			if !row.Client && !row.Server {
				t.Error("it has no role")
			}
			inside := row.Inside()
			if (row.client != nil) != (inside && row.Client) || (row.listen != nil) != (inside && row.Server) {
				t.Error("its roles, and the code for them, differ")
			}
			if row.InProcess && (!inside || row.Polled) {
				t.Error("it can't run in this process")
			}
			if row.Front && !slices.Contains(row.Options.Known, "url") {
				t.Error("the web server in front needs the url of the options")
			}
			for _, key := range row.KeyOptions {
				if !slices.Contains(row.Options.Known, key) {
					t.Errorf("nobody reads the option %q", key)
				}
			}
			if row.Pair == nil {
				return
			}
			options, args, err := row.Pair("[2001:db8::1]:8443")
			if err != nil {
				t.Fatal(err)
			}
			if errs := append(row.Options.Check(options, false), row.Args.Check(args, true)...); len(errs) > 0 {
				t.Errorf("pair makes what its own checks refuse: %v", errs)
			}
			if row.client == nil || row.listen == nil {
				t.Error("pair is for our own transports")
			}
			ln := serverFor(t, row.Name, func(c *ServerConfig) { c.Options = options })
			for _, a := range args {
				if got, ok := ln.Args().Get(a.Key); !ok || got != a.Value {
					t.Errorf("clients are told %s = %q, the server announces %q", a.Key, a.Value, got)
				}
			}
		})
	}
	if row, known := Lookup("obfs9"); known || row == nil || row.Inside() {
		t.Errorf("an unknown transport: %v, %v", row, known)
	}
}

// What is damaged is said, and nothing of it is quoted.
func TestParams(t *testing.T) {
	const (
		secret = "iG9Qkzr2mNbWbVtEcGgXw4dS"
		cert   = "XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA"
		hash   = "RgwfSPBHcKIEFaAsCZfM2OF7UOXiQOCBl+Zob3GWe2I="
	)
	hexOf := func(bytes int) string { return strings.Repeat("0f", bytes) }
	obfs4, _ := Lookup(nameObfs4)
	webtunnel, _ := Lookup(nameWebtunnel)
	meek, _ := Lookup(nameMeekLite)
	other, _ := Lookup("obfs3")
	for _, tt := range []struct {
		params Params
		args   adapter.Args
		want   string // "": nothing is wrong
	}{
		{obfs4.Args, argsOf("cert", cert, "iat-mode", "0"), ""},
		{obfs4.Args, argsOf("node-id", hexOf(20), "public-key", hexOf(32), "iat-mode", "2"), ""},
		{obfs4.Args, argsOf("node-id", hexOf(19), "public-key", hexOf(32), "iat-mode", "2"), "node-id is damaged"},
		{obfs4.Args, argsOf("node-id", hexOf(20), "public-key", strings.Repeat("x", 64), "iat-mode", "2"), "public-key is damaged"},
		{obfs4.Args, argsOf("cert", cert+"A", "iat-mode", "0"), "this one has 71"},
		{obfs4.Args, argsOf("cert", cert, "iat-mode", "3"), "iat-mode can be"},
		{obfs4.Args, argsOf("cert", cert, "iat-mode", "0\\"), `take the "\\" behind it out`},
		{obfs4.Args, argsOf("cert", cert, "iat-mode", "0`"), "behind it out"},
		{obfs4.Options, nil, ""},
		{obfs4.Options, argsOf("node-id", hexOf(20), "private-key", hexOf(32), "drbg-seed", hexOf(24)), ""},
		{obfs4.Options, argsOf("node-id", hexOf(20), "private-key", hexOf(32), "drbg-seed", hexOf(23)), "drbg-seed is damaged"},
		{obfs4.Options, argsOf("private-key", hexOf(32)), "together"},
		{webtunnel.Args, nil, "needs url"},
		{webtunnel.Args, argsOf("url", "https://example.com/"+secret), ""},
		{webtunnel.Args, argsOf("url", "http://example.com:1/"+secret), ""},
		{webtunnel.Args, argsOf("url", "https://example.com"), ""},
		{webtunnel.Args, argsOf("url", "https://192.0.2.1:65535/"+secret), ""},
		{webtunnel.Args, argsOf("url", "https://[2001:db8::1]/"+secret), ""},
		{webtunnel.Args, argsOf("url", "https://[2001:db8::1]:8443/%41/b%20c/"+secret), ""},
		{webtunnel.Args, argsOf("url", "https://2001:db8::1/"+secret), "without its brackets"},
		{webtunnel.Args, argsOf("url", "https://::1:443/"+secret), "without its brackets"},
		{webtunnel.Args, argsOf("url", "https://[192.0.2.1]/"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", "https://[fe80::1%25eth0]/"+secret), "zone"},
		{webtunnel.Args, argsOf("url", "https://example.com:0/"+secret), "port 0"},
		{webtunnel.Args, argsOf("url", "https://example.com:99999/"+secret), "port 99999"},
		{webtunnel.Args, argsOf("url", "https://example.com:x/"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", "https://127.1/"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", "https://example..com/"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", "https://b\u00fccher.example/"+secret), "xn--"},
		{webtunnel.Args, argsOf("url", "https:///"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", "https:"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", "ftp://example.com/"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", "example.com/"+secret), "must be as in"},
		{webtunnel.Args, argsOf("url", ""), "must be as in"},
		{webtunnel.Args, argsOf("url", "[https://example.com/"+secret+"](https://example.com/"+secret+")"), `has "[" at character 1`},
		{webtunnel.Args, argsOf("url", "<https://example.com/"+secret+">"), `has "<" at character 1`},
		{webtunnel.Args, argsOf("url", "https://example.com/"+secret+"?a=b"), "query"},
		{webtunnel.Args, argsOf("url", "https://example.com/"+secret+"?"), "query"},
		{webtunnel.Args, argsOf("url", "https://example.com/"+secret+" "), "space"},
		{webtunnel.Args, argsOf("url", " https://example.com/"+secret), "space"},
		{webtunnel.Args, argsOf("url", "https://example.com/a b"+secret), "space"},
		{webtunnel.Args, argsOf("url", "https://example.com/"+secret+"\t"), "space"},
		{webtunnel.Args, argsOf("url", "https://example.com/"+secret+"#a"), "fragment"},
		{webtunnel.Args, argsOf("url", "https://example.com/"+secret+"#"), "fragment"},
		{webtunnel.Args, argsOf("url", "https://me:"+secret+"@example.com/x"), "user"},
		{webtunnel.Args, argsOf("url", "https://example.com//"+secret), "two slashes"},
		{webtunnel.Options, argsOf("url", "https://example.com/"+secret+"?a=b"), "query"},
		{webtunnel.Args, argsOf("url", "https://example.com/", "addr", "192.0.2.1:443"), ""},
		{webtunnel.Args, argsOf("url", "https://example.com/", "addr", "cdn.example:443"), ""},
		{webtunnel.Args, argsOf("url", "https://example.com/", "addr", "192.0.2.1"), "addr must be"},
		{webtunnel.Args, argsOf("url", "https://example.com/", "addr", "192.0.2.1:0"), "addr must be"},
		{webtunnel.Args, argsOf("url", "https://example.com/", "addr", "2001:db8::1:443"), "addr must be"},
		{webtunnel.Args, argsOf("url", "https://example.com/", "cert", hash), ""},
		{webtunnel.Args, argsOf("url", "https://example.com/", "cert", hash[1:]), "cert is damaged"},
		{meek.Args, nil, "needs url"},
		{meek.Args, argsOf("url", "https://example.com/x?y", "front", "cdn.example"), ""},
		{meek.Args, argsOf("url", "https://example.com:0/"), "port 0"},
		{meek.Args, argsOf("targets", "a|b"), ""},
		{other.Args, argsOf("url", "?"), ""},
	} {
		errs := tt.params.Check(tt.args, false)
		text := errors.Join(errs...)
		switch {
		case tt.want == "" && len(errs) > 0, tt.want != "" && (len(errs) != 1 || !strings.Contains(text.Error(), tt.want)):
			t.Errorf("%v: %v; want %q", tt.args, text, tt.want)
		case tt.want != "" && strings.Contains(text.Error(), secret):
			t.Errorf("%v: the error has the secret: %v", tt.args, text)
		}
	}
}

// Nothing outside the table tells transports apart by their names.
func TestNoNameIsCompared(t *testing.T) {
	const root = "../.."
	own := filepath.Join(root, "adapter", "builtin", "transports.go")
	files := map[string]*ast.File{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files[path], err = parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]bool{}
	for _, f := range files {
		noteConstants(f, constants)
	}
	if files[own] == nil || len(files) < 50 || !constants["nameObfs4"] {
		t.Fatalf("%d files were read, with the constants %v: is this the module's root?", len(files), constants)
	}
	for path, f := range files {
		if path == own {
			continue
		}
		for _, at := range comparedNames(f, constants) {
			t.Errorf("%s: a transport's name is compared: make it a field of the table in %s", fset.Position(at), own)
		}
	}
}

// The test above sees what it is meant to see.
func TestComparedNames(t *testing.T) {
	for code, want := range map[string]int{
		`if x == "obfs4" {}`:                               1,
		`if "webtunnel" != x && x != ("meek_lite") {}`:     2,
		`if string(x) == string("obfs3") {}`:               1,
		`switch x { case "obfs4", nameX: }`:                2,
		`_ = m["snowflake"]`:                               1,
		`_ = m[pkg.NameX]`:                                 1,
		`_ = map[string]int{"obfs4": 1, "other": 2}`:       1,
		`_ = slices.Contains(list, "obfs4")`:               1,
		`_ = strings.EqualFold(x, nameX)`:                  1,
		`x = "obfs4"; f("obfs4"); _ = []string{"obfs4"}`:   0,
		`if x == "obfs4 needs cert" || f("obfs4") != 1 {}`: 0,
		`_ = T{Transport: "obfs4"}`:                        0,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() {\n"+code+"\n}\nconst nameX, NameX = `obfs4`, \"obfs2\"\n", parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		constants := map[string]bool{}
		noteConstants(f, constants)
		if got := comparedNames(f, constants); len(got) != want {
			t.Errorf("%s: %d are found, want %d", code, len(got), want)
		}
	}
}

// noteConstants adds the constants of a file whose values are transports' names.
func noteConstants(f *ast.File, constants map[string]bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			for i, value := range v.Values {
				if i < len(v.Names) && isName(value, nil) {
					constants[v.Names[i].Name] = true
				}
			}
		}
		return true
	})
}

// comparedNames gives the places of a file where a transport's name is compared,
// or is the key of a map.
func comparedNames(f *ast.File, constants map[string]bool) (at []token.Pos) {
	look := func(exprs ...ast.Expr) {
		for _, e := range exprs {
			if isName(e, constants) {
				at = append(at, e.Pos())
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if slices.Contains([]token.Token{token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ}, n.Op) {
				look(n.X, n.Y)
			}
		case *ast.CaseClause:
			look(n.List...)
		case *ast.IndexExpr:
			look(n.Index)
		case *ast.KeyValueExpr:
			look(n.Key)
		case *ast.CallExpr:
			if s, ok := n.Fun.(*ast.SelectorExpr); ok {
				if pkg, ok := s.X.(*ast.Ident); ok && (pkg.Name == "slices" || pkg.Name == "strings") && s.Sel.Name != "Replace" && s.Sel.Name != "Join" {
					look(n.Args...)
				}
			}
		}
		return true
	})
	return at
}

// isName tells whether e is a transport's name, or a constant that is one.
func isName(e ast.Expr, constants map[string]bool) bool {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return isName(e.X, constants)
	case *ast.CallExpr: // a conversion
		id, ok := e.Fun.(*ast.Ident)
		return ok && id.Name == "string" && len(e.Args) == 1 && isName(e.Args[0], constants)
	case *ast.Ident:
		return constants[e.Name]
	case *ast.SelectorExpr:
		return constants[e.Sel.Name]
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		_, known := Lookup(text)
		return err == nil && known
	}
	return false
}
