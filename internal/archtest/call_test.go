package archtest

import (
	"go/ast"
	"go/types"
	"regexp"
	"strings"
)

// foreign lists the decoders of others: packages and names of functions or methods. A function that hands bytes to one of
// them is a decoder itself.
var foreign = map[string]*regexp.Regexp{
	"encoding/json":                    regexp.MustCompile(`^(Unmarshal|Decode|Token)$`),
	"go.yaml.in/yaml/v3":               regexp.MustCompile(`^(Unmarshal|Decode)$`),
	"encoding/pem":                     regexp.MustCompile(`^Decode$`),
	"encoding/asn1":                    regexp.MustCompile(`^Unmarshal`),
	"encoding/base64":                  regexp.MustCompile(`^Decode`),
	"encoding/hex":                     regexp.MustCompile(`^Decode`),
	"encoding/base32":                  regexp.MustCompile(`^Decode`),
	"encoding/binary":                  regexp.MustCompile(`^(Uvarint|Varint|ReadUvarint|Read|Uint16|Uint32|Uint64)$`),
	"encoding/gob":                     regexp.MustCompile(`^Decode`),
	"crypto/x509":                      regexp.MustCompile(`^(Parse|AppendCertsFromPEM|Decrypt)`),
	"crypto/tls":                       regexp.MustCompile(`^X509KeyPair$`),
	"crypto/ecdh":                      regexp.MustCompile(`^New(Public|Private)Key$`),
	"golang.org/x/crypto/ocsp":         regexp.MustCompile(`^Parse`),
	"golang.org/x/crypto/cryptobyte":   regexp.MustCompile(`^(Read|Skip|Copy)`),
	"google.golang.org/protobuf/proto": regexp.MustCompile(`^Unmarshal`),
	"google.golang.org/protobuf/encoding/protowire": regexp.MustCompile(`^Consume`),
	"github.com/golang-jwt/jwt/v5":                  regexp.MustCompile(`^Parse`),
	"github.com/miekg/dns":                          regexp.MustCompile(`^(Unpack|IsDomainName|SplitDomainName|ReadMsg)`),
	"github.com/hashicorp/go-bexpr":                 regexp.MustCompile(`^Create`),
	"github.com/hashicorp/hcl":                      regexp.MustCompile(`^(Parse|Decode|Unmarshal)`),
	"net/url":                                       regexp.MustCompile(`^(Parse|ParseRequestURI|ParseQuery|QueryUnescape|PathUnescape)$`),
	"net/http":                                      regexp.MustCompile(`^(ReadRequest|ReadResponse|ParseTime|ParseForm|ParseMultipartForm)$`),
	"net/mail":                                      regexp.MustCompile(`^Parse`),
	"regexp":                                        regexp.MustCompile(`^(Compile|CompilePOSIX)$`),
	"text/template":                                 regexp.MustCompile(`^Parse$`),
	"bufio":                                         regexp.MustCompile(`^(NewScanner|ReadString|ReadLine|ReadBytes)$`),
}

// reflected are the methods that decoders of others call on what they fill.
var reflected = map[string]bool{"UnmarshalJSON": true, "UnmarshalText": true, "UnmarshalYAML": true, "UnmarshalBinary": true, "Unmarshal": true, "Set": true}

// call handles one call: who may be called, and with what.
func (w *flow) call(c *ast.CallExpr) {
	if w.info.Types[c.Fun].IsType() {
		return
	}
	mask, recv := w.arguments(c)
	for _, a := range c.Args { // what a literal is called with is known to who takes it
		if lit, ok := a.(*ast.FuncLit); ok && mask != 0 {
			w.taintLiteral(lit)
		}
	}
	switch o := w.callee(c).(type) {
	case *types.Builtin:
		if o.Name() == "copy" && w.dirty(c.Args[1]) {
			w.taintRoot(c.Args[0])
		}
	case *types.Func:
		if mask == 0 {
			w.collect(c, recv, w.functions[o.Origin().FullName()])
			return
		}
		w.function(c, o.Origin(), mask, recv)
	default:
		if mask != 0 {
			w.value(c, mask, signatureOf(w.info.TypeOf(c.Fun)))
		}
	}
}

// arguments tells which arguments carry bytes: bit 0 is the receiver.
func (w *flow) arguments(c *ast.CallExpr) (mask uint64, recv ast.Expr) {
	if sel, ok := ast.Unparen(c.Fun).(*ast.SelectorExpr); ok && w.info.Selections[sel] != nil {
		recv = sel.X
		if w.dirty(recv) {
			mask |= 1
		}
	}
	for i, a := range c.Args {
		if w.dirty(a) {
			mask |= 1 << min(i+1, 63)
		}
	}
	return mask, recv
}

func (w *flow) callee(c *ast.CallExpr) types.Object {
	fun := ast.Unparen(c.Fun)
	if x, ok := fun.(*ast.IndexExpr); ok && w.info.Types[x.X].IsValue() {
		if _, generic := w.info.TypeOf(x.X).(*types.Signature); generic {
			fun = x.X
		}
	}
	switch x := fun.(type) {
	case *ast.Ident:
		return w.info.Uses[x]
	case *ast.SelectorExpr:
		return w.info.Uses[x.Sel]
	}
	return nil
}

func (w *flow) function(c *ast.CallExpr, o *types.Func, mask uint64, recv ast.Expr) {
	if r := o.Signature().Recv(); r != nil && types.IsInterface(r.Type()) {
		if o.Pkg() != nil && strings.Contains(o.Pkg().Path(), ".") { // an interface of the standard library would be anything
			for _, f := range w.methods[methodKey(o)] {
				if w.pkgHand[f.pkg] {
					w.enter(f, mask)
					w.collect(c, recv, f)
				}
			}
			if strings.HasPrefix(o.Pkg().Path()+"/", module) {
				return
			}
		}
	}
	if o.Name() == "ServeHTTP" || o.Name() == "HandlerFunc" { // behind a handler may be all that the target has made handlers of
		w.value(c, mask, signatureOf(types.NewSignatureType(nil, nil, nil, o.Signature().Params(), o.Signature().Results(), false)))
	}
	if f := w.functions[o.FullName()]; f != nil {
		if o.Signature().Variadic() { // all that is left is one parameter
			n := o.Signature().Params().Len()
			if mask>>n != 0 {
				mask |= 1 << n
			}
		}
		w.enter(f, mask)
		w.collect(c, recv, f)
		return
	}
	if o.Pkg() == nil || strings.HasPrefix(o.Pkg().Path()+"/", module) {
		return
	}
	if names := foreign[o.Pkg().Path()]; names != nil && names.MatchString(o.Name()) {
		w.fed[w.cur] = true
	}
	if recv != nil {
		w.taintRoot(recv)
	}
	if o.FullName() == "os.WriteFile" { // from here on the name leads to the bytes
		w.taintRoot(c.Args[0])
	}
	for _, a := range c.Args { // a function of others may put anything into what it is given
		switch w.info.TypeOf(a).Underlying().(type) {
		case *types.Pointer, *types.Interface, *types.Slice, *types.Map:
			w.taintRoot(a)
			w.fill(w.info.TypeOf(a), map[types.Type]bool{})
		}
	}
}

// collect takes over what a call leaves in its arguments.
func (w *flow) collect(c *ast.CallExpr, recv ast.Expr, f *function) {
	if f == nil {
		return
	}
	if w.callers[f] == nil {
		return
	}
	out := w.out[f]
	if f.test && w.in[f] != 0 { // what a test's own helper is given it may have put the bytes into
		out = ^uint64(0)
	}
	if out&1 != 0 && recv != nil {
		w.taintRoot(recv)
	}
	for i, a := range c.Args {
		if out&(1<<min(i+1, 63)) != 0 {
			w.taintRoot(a)
		}
	}
}

// fill enters the methods by which a type and its parts decode themselves.
func (w *flow) fill(t types.Type, seen map[types.Type]bool) {
	if seen[t] {
		return
	}
	seen[t] = true
	if n, ok := types.Unalias(t).(*types.Named); ok && n.Obj().Pkg() != nil {
		if !strings.HasPrefix(n.Obj().Pkg().Path()+"/", module) {
			return
		}
		for m := range n.Methods() {
			if f := w.functions[m.Origin().FullName()]; f != nil && reflected[m.Name()] {
				w.enter(f, ^uint64(0))
			}
		}
	}
	switch u := t.Underlying().(type) {
	case *types.Pointer:
		w.fill(u.Elem(), seen)
	case *types.Slice:
		w.fill(u.Elem(), seen)
	case *types.Array:
		w.fill(u.Elem(), seen)
	case *types.Map:
		w.fill(u.Key(), seen)
		w.fill(u.Elem(), seen)
	case *types.Struct:
		for v := range u.Fields() {
			w.fill(v.Type(), seen)
		}
	}
}

// value handles a call of a function value: what the target names and has the same signature.
func (w *flow) value(c *ast.CallExpr, mask uint64, k string) {
	for _, f := range w.sigHand[k] {
		w.enter(f, mask)
	}
	for _, lit := range w.litHand[k] {
		was := w.changed
		w.changed = false
		w.taintLiteral(lit)
		if f := w.owner[lit]; f != nil && w.changed && f != w.cur {
			if w.callers[f] == nil {
				w.callers[f] = map[*function]bool{}
				w.parent[f] = w.cur
			}
			w.again(f)
		}
		w.changed = w.changed || was
	}
}
