package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// decoding matches the names of functions that turn bytes into something.
var decoding = regexp.MustCompile(`^(?i:decode|parse|unmarshal|read|scan|split|consume)([A-Z0-9_]|$)|^(fault|Set)$`)

// raw reports whether a value of that type can be bytes that nobody has looked at yet.
func raw(t types.Type) bool {
	switch t.String() {
	case "[]byte", "[][]byte", "string", "[]string", "io.Reader", "io.ReaderAt", "io.ReadCloser", "net.Conn", "*bufio.Reader", "*net/http.Request", "encoding/json.RawMessage", "map[string]encoding/json.RawMessage":
		return true
	}
	return false
}

// decodes says why a function counts as a decoder; empty: it does not.
func (g *graph) decodes(f *function) string {
	sig := f.obj.Signature()
	in, out := 0, 0
	for _, p := range f.params() {
		if p != nil && raw(p.Type()) {
			in++
		}
	}
	for v := range sig.Results().Variables() {
		if s := v.Type().String(); s == "error" || s == "bool" {
			out++
		}
	}
	if key := methodKey(f.obj); key == "Read([]byte,;int,error,;" || key == "ReadAt([]byte,int64,;int,error,;" {
		return "" // readers hand on bytes; what looks at them is judged by itself
	}
	if decoding.MatchString(f.decl.Name.Name) && in > 0 && out > 0 {
		return "by its name and signature"
	}
	why := ""
	ast.Inspect(f.decl.Body, func(n ast.Node) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok || why != "" {
			return true
		}
		var id *ast.Ident
		switch x := ast.Unparen(c.Fun).(type) {
		case *ast.Ident:
			id = x
		case *ast.SelectorExpr:
			id = x.Sel
		default:
			return true
		}
		if o, ok := g.info.Uses[id].(*types.Func); ok && o.Pkg() != nil {
			if names := foreign[o.Pkg().Path()]; names != nil && names.MatchString(o.Name()) && (in > 0 || o.Pkg().Path() != "encoding/binary") {
				why = "it calls " + o.Pkg().Name() + "." + o.Name()
			}
		}
		return true
	})
	return why
}

// decoder is a function that must be reached by a fuzz target.
type decoder struct {
	*function
	why    string
	target string // which reaches it; empty: none
}

// decoders lists the decoders of the module by name, each with a target, of its own package if one reaches it.
func (g *graph) decoders() (list []decoder, targets int) {
	reached := map[*function]string{}
	for _, f := range g.functions {
		if !f.test || !strings.HasPrefix(f.decl.Name.Name, "Fuzz") || f.obj.Signature().Recv() != nil {
			continue
		}
		targets++
		w := g.follow(f)
		for _, r := range slices.Concat(slices.Collect(maps.Keys(w.in)), slices.Collect(maps.Keys(w.fed))) {
			if was := reached[r]; was == "" || strings.TrimSuffix(f.pkg, "_test") == r.pkg && !strings.HasPrefix(was, r.pkg+".") {
				reached[r] = f.name
			}
		}
	}
	for _, f := range g.functions {
		if why := g.decodes(f); why != "" && !f.test {
			list = append(list, decoder{f, why, reached[f]})
		}
	}
	slices.SortFunc(list, func(a, b decoder) int { return strings.Compare(a.name, b.name) })
	return list, targets
}

func short(name string) string { return strings.ReplaceAll(name, module, "") }

// TestEveryDecoderIsFuzzed: whoever writes a decoder writes a fuzz target that bytes from outside reach it by.
func TestEveryDecoderIsFuzzed(t *testing.T) {
	t.Parallel()
	g := newGraph(typecheck(t))
	list, targets := g.decoders()
	var covered []profileBlock
	if name := os.Getenv("HOLDFAST_FUZZ_COVERAGE"); name != "" {
		covered = readProfile(t, name)
	}
	found, reached, excepted := map[string]bool{}, 0, 0
	for _, d := range list {
		name := short(d.name)
		found[name] = true
		reason := unfuzzed[name]
		if reason == "" {
			reason = unfuzzedPackages[short(d.pkg)]
		}
		run := d.target != "" && covered != nil && ran(covered, g.fset.Position(d.decl.Body.Lbrace), g.fset.Position(d.decl.Body.Rbrace))
		switch {
		case d.target == "" && reason == "":
			t.Errorf("%s (%s): %s is a decoder (%s) that no fuzz target's bytes arrive at: write one beside it, or add it to unfuzzed in archtest with the reason",
				g.fset.Position(d.decl.Pos()), short(d.pkg), name, d.why)
		case run && unfuzzed[name] != "":
			t.Errorf("%s is run by %s: take it out of unfuzzed", name, short(d.target))
		case reason != "":
			excepted++
		default:
			reached++
			if covered != nil && !run {
				t.Errorf("%s is within reach of %s, but no input of any corpus gets there: add a seed that does", name, short(d.target))
			}
			t.Logf("%s: %s, by %s", name, d.why, short(d.target))
		}
	}
	for name, reason := range unfuzzed {
		if !found[name] || reason == "" {
			t.Errorf("unfuzzed has %s, which is no decoder any more, or has no reason", name)
		}
	}
	t.Logf("%d decoders: %d reached by %d fuzz targets, %d excepted with a reason", len(list), reached, targets, excepted)
	if targets < 50 || reached < 100 {
		t.Error("there are fewer than there were: the search itself is broken")
	}
}

// profileBlock is a line of a coverage profile that says that something ran.
type profileBlock struct {
	file        string // below the module's root
	first, last int    // lines
}

// readProfile reads what `go test -coverprofile` wrote.
func readProfile(t *testing.T, name string) (blocks []profileBlock) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var b profileBlock
		var from, to, statements, count int
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || file == "mode" {
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d.%d,%d.%d %d %d", &b.first, &from, &b.last, &to, &statements, &count); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if b.file = strings.TrimPrefix(file, module); count > 0 {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

func ran(blocks []profileBlock, from, to token.Position) bool {
	return slices.ContainsFunc(blocks, func(b profileBlock) bool {
		return strings.HasSuffix(from.Filename, "/"+b.file) && b.first >= from.Line && b.last <= to.Line
	})
}
