package archtest

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
)

// A flow says which functions bytes from outside arrive at, if they are given to a fuzz target. It is an estimate of the
// usual kind: it looks at variables as wholes and not at the order of statements, and a call of an interface's method or of a function
// value may be a call of everything that fits and that the target has in its hands. What it says that bytes arrive at may be
// wrong in rare cases; `.ci/fuzz -seeds` looks at what the corpora really ran.

// function is one declared function of the module.
type function struct {
	name  string
	pkg   string // import path
	obj   *types.Func
	decl  *ast.FuncDecl
	test  bool
	sig   string          // parameters and results, spelt out
	calls []string        // functions that it names, called or not, and variables of packages
	given map[string]bool // those that it names otherwise than to call them: as values
	lits  []*ast.FuncLit  // functions without a name inside of it
}

// params are the receiver, which may be nil, and the parameters.
func (f *function) params() []*types.Var {
	sig := f.obj.Signature()
	all := []*types.Var{sig.Recv()}
	for v := range sig.Params().Variables() {
		all = append(all, v)
	}
	return all
}

// graph is every function of the module.
type graph struct {
	*program
	functions map[string]*function
	methods   map[string][]*function     // by name and signature
	inits     map[string][]string        // functions named in the value of a package's variable
	literals  map[string][]*ast.FuncLit  // the same without names
	owner     map[*ast.FuncLit]*function // whose body a literal is in
}

func newGraph(p *program) *graph {
	g := &graph{program: p, functions: map[string]*function{}, methods: map[string][]*function{}, inits: map[string][]string{}, literals: map[string][]*ast.FuncLit{}, owner: map[*ast.FuncLit]*function{}}
	for _, l := range p.pkgs {
		g.add(l.files, false)
		g.add(l.testFiles, true)
		g.add(l.externalTestFiles, true)
	}
	return g
}

func (g *graph) add(files []*ast.File, test bool) {
	for _, file := range files {
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				g.addFunction(d, test)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if v, ok := spec.(*ast.ValueSpec); ok {
						for _, name := range v.Names {
							id := objectName(g.info.Defs[name])
							g.inits[id], g.literals[id] = g.named(v)
						}
					}
				}
			}
		}
	}
}

func (g *graph) addFunction(d *ast.FuncDecl, test bool) {
	obj, ok := g.info.Defs[d.Name].(*types.Func)
	if !ok || d.Body == nil {
		return
	}
	f := &function{name: obj.FullName(), pkg: obj.Pkg().Path(), obj: obj, decl: d, test: test, sig: signatureOf(obj.Type())}
	f.calls, f.lits = g.named(d.Body)
	f.given = g.values(d.Body)
	for _, lit := range f.lits {
		g.owner[lit] = f
	}
	g.functions[f.name] = f
	if obj.Signature().Recv() != nil {
		k := methodKey(obj)
		g.methods[k] = append(g.methods[k], f)
	}
}

// named lists the functions that a piece of code names and those that it spells out.
func (g *graph) named(n ast.Node) (names []string, lits []*ast.FuncLit) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			lits = append(lits, n)
		case *ast.Ident:
			switch o := g.info.Uses[n].(type) {
			case *types.Func:
				names = append(names, o.Origin().FullName())
			case *types.Var:
				if o.Pkg() != nil && o.Parent() == o.Pkg().Scope() {
					names = append(names, "var "+objectName(o))
				}
			}
		}
		return true
	})
	return names, lits
}

// values lists the functions that a piece of code names as values.
func (g *graph) values(n ast.Node) map[string]bool {
	called, given := map[*ast.Ident]bool{}, map[string]bool{}
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			switch f := ast.Unparen(n.Fun).(type) {
			case *ast.Ident:
				called[f] = true
			case *ast.SelectorExpr:
				called[f.Sel] = true
			}
		case *ast.Ident:
			if o, ok := g.info.Uses[n].(*types.Func); ok && !called[n] {
				given[o.Origin().FullName()] = true
			}
		}
		return true
	})
	return given
}

func objectName(o types.Object) string {
	if o == nil || o.Pkg() == nil {
		return ""
	}
	return o.Pkg().Path() + "." + o.Name()
}

func signatureOf(t types.Type) string {
	s, ok := types.Unalias(t).Underlying().(*types.Signature)
	if !ok {
		return ""
	}
	var b strings.Builder
	for _, tuple := range []*types.Tuple{s.Params(), s.Results()} {
		for v := range tuple.Variables() {
			b.WriteString(types.TypeString(v.Type(), nil) + ",")
		}
		b.WriteString(";")
	}
	return b.String()
}

func methodKey(f *types.Func) string { return f.Name() + "(" + signatureOf(f.Signature()) }

// flow follows the bytes of one fuzz target.
type flow struct {
	*graph
	in, out map[*function]uint64 // parameters that carry bytes from outside when called, and after
	tainted map[types.Object]bool
	callers map[*function]map[*function]bool
	parent  map[*function]*function
	fed     map[*function]bool // functions that give bytes from outside to a decoder of others
	inHand  map[string]bool    // functions that the target and what it calls name
	litHand map[string][]*ast.FuncLit
	sigHand map[string][]*function // those of them that are values somewhere, by signature
	given   map[string]bool
	pkgHand map[string]bool // packages of which a function is in hand
	queue   []*function
	cur     *function
	changed bool
}

// follow runs a target: `f.Fuzz(x)`, x being a literal or a function's name.
func (g *graph) follow(target *function) *flow {
	w := &flow{graph: g, in: map[*function]uint64{}, out: map[*function]uint64{}, tainted: map[types.Object]bool{}, callers: map[*function]map[*function]bool{},
		parent: map[*function]*function{}, fed: map[*function]bool{}, inHand: map[string]bool{}, litHand: map[string][]*ast.FuncLit{}, sigHand: map[string][]*function{}, given: map[string]bool{}, pkgHand: map[string]bool{}}
	w.hold(target.name)
	w.cur = target
	ast.Inspect(target.decl.Body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Fuzz" {
			return true
		}
		switch x := call.Args[0].(type) {
		case *ast.FuncLit:
			w.taintLiteral(x)
			w.queue = append(w.queue, target)
		case *ast.Ident:
			if f := g.functions[objectName(g.info.Uses[x])]; f != nil {
				w.enter(f, ^uint64(1))
			}
		}
		return false
	})
	for len(w.queue) > 0 {
		f := w.queue[len(w.queue)-1]
		w.queue = w.queue[:len(w.queue)-1]
		w.walk(f)
	}
	return w
}

// hold collects what may stand behind a function value: everything that is named on the way, whatever bytes it is given.
func (w *flow) hold(name string) {
	if w.inHand[name] {
		return
	}
	w.inHand[name] = true
	calls, lits := w.inits[strings.TrimPrefix(name, "var ")], w.literals[strings.TrimPrefix(name, "var ")]
	if f := w.functions[name]; f != nil {
		calls, lits = f.calls, f.lits
		w.pkgHand[f.pkg] = true
	}
	for _, lit := range lits {
		k := signatureOf(w.info.TypeOf(lit))
		w.litHand[k] = append(w.litHand[k], lit)
	}
	for _, c := range calls {
		if f := w.functions[c]; f != nil && !w.given[c] && (strings.HasPrefix(name, "var ") || w.functions[name].given[c]) {
			w.given[c] = true
			w.sigHand[f.sig] = append(w.sigHand[f.sig], f)
		}
		w.hold(c)
	}
}

// carries reports whether a value of that type can hold bytes from outside that somebody could decode.
func carries(t types.Type) bool {
	switch t.String() {
	case "error", "*testing.T", "*testing.F", "*testing.B", "testing.TB", "context.Context":
		return false
	}
	switch u := t.Underlying().(type) {
	case *types.Basic:
		return u.Info()&types.IsString != 0
	}
	return true
}

func (w *flow) taint(o types.Object) {
	if v, ok := o.(*types.Var); ok && !w.tainted[o] && (carries(v.Type()) || isByte(v.Type())) && (v.Pkg() == nil || v.Parent() != v.Pkg().Scope()) {
		w.tainted[o] = true
		w.changed = true
	}
}

func (w *flow) taintLiteral(lit *ast.FuncLit) {
	for _, f := range lit.Type.Params.List {
		for _, name := range f.Names {
			w.taint(w.info.Defs[name])
		}
	}
}

// enter says that f is called with these parameters carrying bytes.
func (w *flow) enter(f *function, mask uint64) {
	for i, p := range f.params() {
		if p == nil || !carries(p.Type()) {
			mask &^= 1 << i
		}
	}
	mask &= 1<<len(f.params()) - 1
	if w.callers[f] == nil {
		w.callers[f] = map[*function]bool{}
		w.parent[f] = w.cur
	}
	w.callers[f][w.cur] = true
	if mask != 0 && w.in[f]|mask != w.in[f] {
		w.in[f] |= mask
		w.again(f)
	}
}

func (w *flow) again(f *function) {
	if !slices.Contains(w.queue, f) {
		w.queue = append(w.queue, f)
	}
}

func (w *flow) walk(f *function) {
	w.cur = f
	params := f.params()
	for i, p := range params {
		if p != nil && w.in[f]&(1<<i) != 0 {
			w.tainted[p] = true
		}
	}
	for w.changed = true; w.changed; {
		w.changed = false
		ast.Inspect(f.decl.Body, w.visit)
	}
	var out uint64
	for i, p := range params {
		if p != nil && w.tainted[p] {
			out |= 1 << i
		}
	}
	if out &^= w.in[f]; out != w.out[f] {
		w.out[f] = out
		for c := range w.callers[f] {
			w.again(c)
		}
	}
}

func (w *flow) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.AssignStmt:
		for i, l := range n.Lhs {
			r := n.Rhs[min(i, len(n.Rhs)-1)]
			if w.dirty(r) {
				w.taintRoot(l)
			}
		}
	case *ast.ValueSpec:
		for i, name := range n.Names {
			if len(n.Values) > 0 && w.dirty(n.Values[min(i, len(n.Values)-1)]) {
				w.taint(w.info.Defs[name])
			}
		}
	case *ast.RangeStmt:
		if w.dirty(n.X) {
			w.taintRoot(n.Key)
			w.taintRoot(n.Value)
		}
	case *ast.TypeSwitchStmt:
		w.typeSwitch(n)
	case *ast.SendStmt:
		if w.dirty(n.Value) {
			w.taintRoot(n.Chan)
		}
	case *ast.CallExpr:
		w.call(n)
	}
	return true
}

func (w *flow) typeSwitch(n *ast.TypeSwitchStmt) {
	a, ok := n.Assign.(*ast.AssignStmt)
	if !ok || !w.dirty(a.Rhs[0]) {
		return
	}
	for _, c := range n.Body.List {
		w.taint(w.info.Implicits[c])
	}
}

// taintRoot marks the variable that an expression is a part of.
func (w *flow) taintRoot(e ast.Expr) {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			if o := w.info.Defs[x]; o != nil {
				w.taint(o)
			} else {
				w.taint(w.info.Uses[x])
			}
			return
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.UnaryExpr:
			e = x.X
		case *ast.TypeAssertExpr:
			e = x.X
		default:
			return
		}
	}
}

// dirty reports whether an expression carries bytes from outside.
func (w *flow) dirty(e ast.Expr) bool {
	if lit, ok := e.(*ast.FuncLit); ok {
		return w.returns(lit)
	}
	if t := w.info.TypeOf(e); t != nil {
		if tuple, ok := t.(*types.Tuple); !ok && !carries(t) || ok && tuple.Len() == 0 {
			return isByte(t) && w.dirtyPart(e)
		}
	}
	return w.dirtyPart(e)
}

// returns reports whether a function without a name hands out bytes from outside.
func (w *flow) returns(lit *ast.FuncLit) (found bool) {
	ast.Inspect(lit.Body, func(n ast.Node) bool {
		if r, ok := n.(*ast.ReturnStmt); ok && slices.ContainsFunc(r.Results, w.dirty) {
			found = true
		}
		return !found
	})
	return found
}

// isByte: a single byte or rune may be appended to others.
func isByte(t types.Type) bool {
	b, ok := t.Underlying().(*types.Basic)
	return ok && (b.Kind() == types.Uint8 || b.Kind() == types.Int32)
}

func (w *flow) dirtyPart(e ast.Expr) bool {
	switch x := e.(type) {
	case *ast.Ident:
		return w.tainted[w.info.Uses[x]]
	case *ast.SelectorExpr:
		return w.dirtyPart(x.X)
	case *ast.IndexExpr:
		return w.dirtyPart(x.X)
	case *ast.SliceExpr:
		return w.dirtyPart(x.X)
	case *ast.StarExpr:
		return w.dirtyPart(x.X)
	case *ast.ParenExpr:
		return w.dirtyPart(x.X)
	case *ast.UnaryExpr:
		return w.dirtyPart(x.X)
	case *ast.TypeAssertExpr:
		return w.dirtyPart(x.X)
	case *ast.BinaryExpr:
		return x.Op == token.ADD && (w.dirtyPart(x.X) || w.dirtyPart(x.Y))
	case *ast.KeyValueExpr:
		return w.dirty(x.Value)
	case *ast.CompositeLit:
		return slices.ContainsFunc(x.Elts, w.dirty)
	case *ast.CallExpr:
		if slices.ContainsFunc(x.Args, w.dirty) {
			return true
		}
		switch f := x.Fun.(type) {
		case *ast.Ident:
			return w.tainted[w.info.Uses[f]] // a function value that hands out such bytes
		case *ast.SelectorExpr:
			return w.info.Selections[f] != nil && w.dirtyPart(f.X)
		}
	}
	return false
}
