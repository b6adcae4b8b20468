package builtin

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
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
