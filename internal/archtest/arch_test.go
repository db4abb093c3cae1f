package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "holdfast.dev/holdfast/"

// source is one parsed file.
type source struct {
	name  string // path below the module's root, with slashes
	pkg   string // directory below the module's root
	test  bool
	lines int
	file  *ast.File
}

type tree struct {
	fset  *token.FileSet
	files []source
}

// load parses every Go file of the main module. test/ has go.mod files of its own and is not part of the house.
func load(t *testing.T) tree {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	tr := tree{fset: token.NewFileSet()}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == "test" || strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(tr.fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		tr.files = append(tr.files, source{name: rel, pkg: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), lines: strings.Count(string(text), "\n"), file: f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.files) < 10 {
		t.Fatalf("found %d files: the walk is wrong", len(tr.files))
	}
	return tr
}

func (s source) imports() map[string]string {
	names := map[string]string{}
	for _, im := range s.file.Imports {
		p, _ := strconv.Unquote(im.Path.Value)
		name := path.Base(p)
		if regexp.MustCompile(`^v\d+$`).MatchString(name) {
			name = path.Base(path.Dir(p))
		}
		if im.Name != nil {
			name = im.Name.Name
		}
		names[p] = name
	}
	return names
}

func TestImportTable(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, s := range load(t).files {
		rule, known := house[s.pkg]
		if !seen[s.pkg] && !known {
			t.Errorf("package %s is not in the import table of archtest: add it with its reason", s.pkg)
		}
		seen[s.pkg] = true
		if s.test || !known {
			continue
		}
		for p := range s.imports() {
			if below, ok := strings.CutPrefix(p, module); ok {
				short := strings.TrimPrefix(below, "internal/")
				if !slices.Contains(rule.imports, short) && below != s.pkg {
					t.Errorf("%s imports %s; %s may import only %v (%s)", s.name, below, s.pkg, rule.imports, rule.reason)
				}
			}
		}
	}
}

func TestDoors(t *testing.T) {
	t.Parallel()
	for _, s := range load(t).files {
		if s.test {
			continue
		}
		for p := range s.imports() {
			for _, d := range doors { // the first, most specific, door decides
				if p == d.path || strings.HasPrefix(p, d.path+"/") {
					if !slices.Contains(d.via, s.pkg) {
						t.Errorf("%s imports %s; only %v may (%s)", s.name, p, d.via, d.reason)
					}
					break
				}
			}
		}
	}
}

func TestDeterministicPackages(t *testing.T) {
	t.Parallel()
	tr := load(t)
	for _, s := range tr.files {
		if s.test || !slices.Contains(deterministic, s.pkg) {
			continue
		}
		for p := range s.imports() {
			if slices.Contains(bannedInDeterministic, p) {
				t.Errorf("%s imports %s: the machine has no clock, randomness, file, network or log", s.name, p)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a go statement in a deterministic package", tr.fset.Position(g.Pos()))
			}
			return true
		})
	}
}

func TestSelectors(t *testing.T) {
	t.Parallel()
	tr := load(t)
	for _, s := range tr.files {
		imports := s.imports()
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			for _, r := range selectors {
				if s.test && !r.tests || slices.Contains(r.via, s.pkg) || !slices.Contains(r.names, sel.Sel.Name) && !slices.Contains(r.names, "*") {
					continue
				}
				if r.pkgPath != "" {
					x, ok := sel.X.(*ast.Ident)
					if !ok || imports[r.pkgPath] == "" || imports[r.pkgPath] != x.Name {
						continue
					}
				}
				t.Errorf("%s uses %s: %s", tr.fset.Position(sel.Pos()), sel.Sel.Name, r.reason)
			}
			return true
		})
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	tr := load(t)
	exports := map[string]int{}
	for _, s := range tr.files {
		if s.test {
			continue
		}
		if s.lines > maxFileLines {
			t.Errorf("%s has %d lines; %d is the hard limit: split it by the nouns it holds", s.name, s.lines, maxFileLines)
		}
		for _, d := range s.file.Decls {
			exports[s.pkg] += exported(d)
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				n := tr.fset.Position(f.End()).Line - tr.fset.Position(f.Pos()).Line + 1
				name := s.pkg + "." + f.Name.Name
				if n > maxFuncLines && longFuncs[name] == "" {
					t.Errorf("%s: %s has %d lines; %d is the limit", s.name, name, n, maxFuncLines)
				}
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			ts, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if it, ok := ts.Type.(*ast.InterfaceType); ok {
				name := s.pkg + "." + ts.Name.Name
				if it.Methods.NumFields() > maxInterfaceSize && wideInterfaces[name] == "" {
					t.Errorf("%s: interface %s has %d methods; %d is the limit", s.name, name, it.Methods.NumFields(), maxInterfaceSize)
				}
			}
			return true
		})
	}
	for pkg, n := range exports {
		limit := maxExports
		if m, ok := manyExports[pkg]; ok {
			limit = m.max
		}
		if n > limit {
			t.Errorf("package %s exports %d names; %d is its limit", pkg, n, limit)
		}
	}
}

func exported(d ast.Decl) (n int) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil && d.Name.IsExported() {
			n++
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if spec.Name.IsExported() {
					n++
				}
			case *ast.ValueSpec:
				for _, id := range spec.Names {
					if id.IsExported() {
						n++
					}
				}
			}
		}
	}
	return n
}

func TestDocs(t *testing.T) {
	t.Parallel()
	tr := load(t)
	documented := map[string]bool{}
	packages := map[string]bool{}
	for _, s := range tr.files {
		if s.test {
			continue
		}
		packages[s.pkg] = true
		if s.file.Doc != nil && len(s.file.Doc.Text()) > 120 {
			documented[s.pkg] = true
		}
		for _, d := range s.file.Decls {
			checkDocs(t, tr.fset, d)
		}
	}
	for pkg := range packages {
		if !documented[pkg] {
			t.Errorf("package %s has no comment that says its job, its non-job and its invariants", pkg)
		}
	}
}

func checkDocs(t *testing.T, fset *token.FileSet, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && !methodOfUnexported(d) {
			t.Errorf("%s: exported %s has no comment", fset.Position(d.Pos()), d.Name.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			ts, ok := spec.(*ast.TypeSpec)
			if ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil && ts.Comment == nil {
				t.Errorf("%s: exported type %s has no comment", fset.Position(ts.Pos()), ts.Name.Name)
			}
		}
	}
}

func methodOfUnexported(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return false
	}
	x := d.Recv.List[0].Type
	for {
		switch t := x.(type) {
		case *ast.StarExpr:
			x = t.X
		case *ast.IndexExpr:
			x = t.X
		case *ast.Ident:
			return !t.IsExported()
		default:
			return false
		}
	}
}

func TestBans(t *testing.T) {
	t.Parallel()
	tr := load(t)
	todo := regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)
	for _, s := range tr.files {
		base := path.Base(s.name)
		if regexp.MustCompile(`^(utils?|commons?|helpers?|managers?|misc)(_test)?\.go$`).MatchString(base) {
			t.Errorf("%s: a drawer for leftovers; name the noun it is about", s.name)
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: init() runs before anybody decided to start", s.name)
				}
			case *ast.GenDecl:
				if d.Tok == token.VAR && !s.test {
					checkGlobals(t, tr.fset, s, d)
				}
			}
		}
		if s.pkg == "internal/archtest" {
			continue
		}
		for _, c := range s.file.Comments {
			if todo.MatchString(c.Text()) {
				t.Errorf("%s: an open end in a comment: do it, or write it into an issue", tr.fset.Position(c.Pos()))
			}
		}
	}
}

// checkGlobals wants package-level variables to have a value from the start, or to be listed. Assignments are looked
// for by TestGlobalsAreNotAssigned.
func checkGlobals(t *testing.T, fset *token.FileSet, s source, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		v := spec.(*ast.ValueSpec)
		for _, id := range v.Names {
			if id.Name == "_" || len(v.Values) > 0 {
				continue
			}
			if name := s.pkg + "." + id.Name; mutableGlobals[name] == "" {
				t.Errorf("%s: package-level variable %s without a value is state that somebody sets later", fset.Position(id.Pos()), id.Name)
			}
		}
	}
}

func TestGlobalsAreNotAssigned(t *testing.T) {
	t.Parallel()
	tr := load(t)
	globals := map[string]map[string]bool{}
	for _, s := range tr.files {
		for _, d := range s.file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR || s.test {
				continue
			}
			for _, spec := range g.Specs {
				for _, id := range spec.(*ast.ValueSpec).Names {
					if globals[s.pkg] == nil {
						globals[s.pkg] = map[string]bool{}
					}
					globals[s.pkg][id.Name] = true
				}
			}
		}
	}
	for _, s := range tr.files {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			local := locals(f)
			ast.Inspect(f.Body, func(n ast.Node) bool {
				a, ok := n.(*ast.AssignStmt)
				if !ok || a.Tok == token.DEFINE {
					return true
				}
				for _, l := range a.Lhs {
					id, ok := l.(*ast.Ident)
					if ok && id.Name != "_" && globals[s.pkg][id.Name] && !local[id.Name] && mutableGlobals[s.pkg+"."+id.Name] == "" {
						t.Errorf("%s: assigns to the package-level variable %s", tr.fset.Position(a.Pos()), id.Name)
					}
				}
				return true
			})
		}
	}
}

// locals returns every name that f declares anywhere: good enough to tell a shadowed global from an assigned one.
func locals(f *ast.FuncDecl) map[string]bool {
	names := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, l := range n.Lhs {
					if id, ok := l.(*ast.Ident); ok {
						names[id.Name] = true
					}
				}
			}
		case *ast.ValueSpec:
			for _, id := range n.Names {
				names[id.Name] = true
			}
		case *ast.Field:
			for _, id := range n.Names {
				names[id.Name] = true
			}
		case *ast.RangeStmt:
			for _, e := range []ast.Expr{n.Key, n.Value} {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					names[id.Name] = true
				}
			}
		}
		return true
	})
	return names
}
