package archtest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// listed is what `go list` says of a package.
type listed struct {
	ImportPath, Dir, ForTest, Export    string
	GoFiles, TestGoFiles, XTestGoFiles  []string
	Module                              *struct{ Main bool }
	plain, tested, external             *types.Package
	files, testFiles, externalTestFiles []*ast.File
}

// program is the main module with its types: every package as it is built, and once more together with its tests. Packages
// of others are known by their export data only. A function is the same in both if its full name is.
type program struct {
	fset    *token.FileSet
	pkgs    map[string]*listed
	info    *types.Info
	foreign types.Importer
}

func fuzzes(l *listed) bool {
	for _, f := range slices.Concat(l.testFiles, l.externalTestFiles) {
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(d.Name.Name, "Fuzz") {
				return true
			}
		}
	}
	return false
}

// compiled imports packages by what the compiler has written of them.
func compiled(t *testing.T, fset *token.FileSet, paths ...string) types.Importer {
	t.Helper()
	exports := map[string]string{}
	for _, l := range list(t, append([]string{"-export"}, paths...)...) {
		exports[l.ImportPath] = l.Export
	}
	return importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, errors.New("no export data of " + path)
		}
		return os.Open(exports[path])
	})
}

func newInfo() *types.Info {
	return &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{},
		Selections: map[*ast.SelectorExpr]*types.Selection{}, Implicits: map[ast.Node]types.Object{},
	}
}

// typecheck loads the module whose root is two directories up.
func typecheck(t *testing.T) *program {
	t.Helper()
	p := &program{fset: token.NewFileSet(), pkgs: map[string]*listed{}, info: newInfo()}
	var others []string
	for _, l := range list(t, "-deps", "-test", "./...") {
		switch {
		case l.ForTest != "" || strings.HasSuffix(l.ImportPath, ".test"):
		case l.Module != nil && l.Module.Main:
			p.pkgs[l.ImportPath] = l
		default:
			others = append(others, l.ImportPath)
		}
	}
	p.foreign = compiled(t, p.fset, others...)
	for _, l := range p.pkgs {
		if _, err := p.Import(l.ImportPath); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range p.pkgs {
		if err := p.checkTests(l); err != nil && fuzzes(l) {
			t.Fatal(err) // tests without fuzz targets may be broken: whoever runs them sees it
		}
	}
	return p
}

// list asks the go command about packages, as this machine would build them.
func list(t *testing.T, args ...string) []*listed {
	t.Helper()
	const fields = "ImportPath,Dir,ForTest,Export,GoFiles,TestGoFiles,XTestGoFiles,Module"
	cmd := exec.Command("go", append([]string{"list", "-json=" + fields}, args...)...)
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []*listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		l := new(listed)
		if err := d.Decode(l); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
}

// Import implements types.Importer: own packages from source, others from what the compiler exported.
func (p *program) Import(path string) (*types.Package, error) {
	l := p.pkgs[path]
	if l == nil {
		return p.foreign.Import(path)
	}
	if l.plain != nil {
		return l.plain, nil
	}
	var err error
	if l.files, err = p.parse(l, l.GoFiles); err != nil {
		return nil, err
	}
	l.plain, err = p.check(path, l.files, p)
	return l.plain, err
}

func (p *program) parse(l *listed, names []string) (files []*ast.File, err error) {
	for _, name := range names {
		f, err := parser.ParseFile(p.fset, filepath.Join(l.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func (p *program) check(path string, files []*ast.File, from types.Importer) (*types.Package, error) {
	c := types.Config{Importer: from, Error: func(error) {}}
	pkg, err := c.Check(path, p.fset, files, p.info)
	return pkg, err
}

// checkTests types a package once more, now with its tests.
func (p *program) checkTests(l *listed) (err error) {
	again, err := p.parse(l, l.GoFiles)
	if err != nil {
		return err
	}
	if l.testFiles, err = p.parse(l, l.TestGoFiles); err != nil {
		return err
	}
	if l.tested, err = p.check(l.ImportPath, append(again, l.testFiles...), p); err != nil {
		return err
	}
	if len(l.XTestGoFiles) == 0 {
		return nil
	}
	if l.externalTestFiles, err = p.parse(l, l.XTestGoFiles); err != nil {
		return err
	}
	l.external, err = p.check(l.ImportPath+"_test", l.externalTestFiles, withTested{p, l})
	return err
}

// withTested lets a test package import the package that it tests together with that one's own tests.
type withTested struct {
	*program
	under *listed
}

func (w withTested) Import(path string) (*types.Package, error) {
	if path == w.under.ImportPath {
		return w.under.tested, nil
	}
	return w.program.Import(path)
}
