package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"slices"
	"strings"
	"testing"
)

// ways is a package in which bytes get from fuzz targets to decoders in every way that a flow knows, and to some not at all.
const ways = `package p

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

type part struct{ b []byte }

func (p *part) UnmarshalJSON(b []byte) error { p.b = b; return nil }

type whole struct{ Parts []part }

type reader interface{ readMore(b []byte) error }
type one struct{}

func (one) readMore(b []byte) error { return errors.New(string(b)) }

func decodeDirect(b []byte) error           { return decodeNested(b[1:]) }
func decodeNested(b []byte) error           { return errors.New(string(b)) }
func decodeThroughField(b []byte) error     { return nil }
func decodeThroughTable(b []byte) error     { return nil }
func decodeThroughClosure(b []byte) error   { return nil }
func decodeThroughInterface(b []byte) error { var r reader = one{}; return r.readMore(b) }
func decodeThroughCallback(b []byte) error  { return nil }
func decodeWholeText(text string) error     { return json.Unmarshal([]byte(text), new(whole)) }
func decodeAfterFill(b []byte) error        { return nil }
func decodeByte(b []byte) error             { return nil }
func decodeOwn(b []byte) error              { return nil }
func decodeNever(b []byte) error            { return nil }
func decodeInSetup(b []byte) error          { return nil }
func decodeLength(b []byte, n int) error    { return nil }
func hidden(b []byte) error                 { return json.Unmarshal(b, new(int)) }

type holder struct{ kept []byte }

func (h *holder) keep(b []byte)   { h.kept = b }
func (h *holder) readBack() error { return decodeThroughField(h.kept) }

func table() []func([]byte) error { return []func([]byte) error{decodeThroughTable} }

func each(b []byte, f func([]byte) error) error { return f(b) }

func fill(into []byte, from string) { copy(into, from) }

func open(read func() []byte) error { return decodeThroughClosure(read()) }

func FuzzAll(f *testing.F) {
	decodeInSetup([]byte("constant"))
	f.Fuzz(func(t *testing.T, b []byte) {
		decodeDirect(b)
		h := &holder{}
		h.keep(b)
		h.readBack()
		for _, d := range table() {
			d(b)
		}
		open(func() []byte { return b })
		decodeThroughInterface(b)
		each(b, func(c []byte) error { return decodeThroughCallback(c) })
		decodeWholeText(strings.TrimSpace(string(b)))
		own := make([]byte, len(b))
		decodeOwn([]byte("x"))
		decodeLength(nil, len(b))
		fill(own, string(b))
		decodeAfterFill(own)
		for _, c := range b {
			decodeByte([]byte{c})
		}
	})
}
`

// TestFlowFollowsBytes: the search finds what is reached and, above all, what is not.
func TestFlowFollowsBytes(t *testing.T) {
	t.Parallel()
	p := &program{fset: token.NewFileSet(), info: newInfo()}
	file, err := parser.ParseFile(p.fset, "p_test.go", ways, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	c := types.Config{Importer: compiled(t, p.fset, "-deps", "encoding/json", "errors", "strings", "testing")}
	if _, err := c.Check(module+"p", p.fset, []*ast.File{file}, p.info); err != nil {
		t.Fatal(err)
	}
	p.pkgs = map[string]*listed{module + "p": {ImportPath: module + "p", files: []*ast.File{file}}}
	g := newGraph(p)
	g.functions[module+"p.FuzzAll"].test = true
	list, targets := g.decoders()
	var reached, missed []string
	for _, d := range list {
		name := strings.TrimPrefix(strings.ReplaceAll(d.name, module+"p.", ""), "decode")
		if d.target != "" {
			reached = append(reached, name)
		} else {
			missed = append(missed, name)
		}
	}
	slices.Sort(reached)
	slices.Sort(missed)
	wantReached := "(*part).UnmarshalJSON (one).readMore AfterFill Byte Direct Nested ThroughCallback ThroughClosure ThroughField ThroughInterface ThroughTable WholeText"
	if got := strings.Join(reached, " "); got != wantReached || targets != 1 {
		t.Errorf("reached by %d targets:\n %s, want\n %s", targets, got, wantReached)
	}
	if got, want := strings.Join(missed, " "), "InSetup Length Never Own hidden"; got != want {
		t.Errorf("not reached:\n %s, want\n %s", got, want)
	}
}
