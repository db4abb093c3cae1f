package consulapi

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-bexpr/grammar"
)

// speller writes an expression again, with two things that Consul's filters do and the library does not: a selector that
// names no field is refused before anything is looked at, and one that goes through a list of structs
// ("Checks.Status == critical") holds if it holds for any element.
type speller struct {
	in    reflect.Type
	names int // of variables that were made up; 0: the expression can stay as it was
}

// invalidSelector is Consul's refusal.
func invalidSelector(s grammar.Selector) error {
	return wrong("Selector %q is not valid", s.String())
}

// rank says how tightly an expression holds together, so that parentheses stand only where they must: the library's
// parser begins anew four times at each of them.
func rank(e grammar.Expression) int {
	switch e := e.(type) {
	case *grammar.BinaryExpression:
		if e.Operator == grammar.BinaryOpOr {
			return 0
		}
		return 1
	case *grammar.UnaryExpression:
		return 2
	}
	return 3
}

// within spells e as an operand of something that holds together as tightly as least.
func (s *speller) within(e grammar.Expression, least int, bound []string) (string, error) {
	text, err := s.spell(e, bound)
	if rank(e) < least {
		text = "(" + text + ")"
	}
	return text, err
}

// spell returns e as text. Names that a collection expression binds are in bound.
func (s *speller) spell(e grammar.Expression, bound []string) (string, error) {
	switch e := e.(type) {
	case *grammar.UnaryExpression:
		inner, err := s.within(e.Operand, 2, bound)
		return "not " + inner, err
	case *grammar.BinaryExpression:
		own, word := rank(e), " and "
		if e.Operator == grammar.BinaryOpOr {
			word = " or "
		}
		left, err := s.within(e.Left, own+1, bound)
		if err != nil {
			return "", err
		}
		right, err := s.within(e.Right, own, bound)
		return left + word + right, err
	case *grammar.CollectionExpression:
		return s.collection(e, bound)
	case *grammar.MatchExpression:
		return s.match(e, bound)
	}
	return "", fmt.Errorf("unknown expression %T", e)
}

func (s *speller) collection(e *grammar.CollectionExpression, bound []string) (string, error) {
	if _, err := s.through(e.Selector, bound); err != nil {
		return "", err
	}
	b := e.NameBinding
	names := b.Default
	switch b.Mode {
	case grammar.CollectionBindIndexAndValue:
		names = b.Index + ", " + b.Value
	case grammar.CollectionBindIndex:
		names = b.Index + ", _"
	case grammar.CollectionBindValue:
		names = "_, " + b.Value
	}
	inner, err := s.spell(e.Inner, append(slices.Clone(bound), b.Default, b.Index, b.Value))
	return fmt.Sprintf("(%s %s as %s { %s })", strings.ToLower(string(e.Op)), spelled(e.Selector.Path), names, inner), err
}

func (s *speller) match(e *grammar.MatchExpression, bound []string) (string, error) {
	at, err := s.through(e.Selector, bound)
	if err != nil || at == 0 {
		return relation(e, spelled(e.Selector.Path)), err
	}
	s.names++
	each := "each" + strconv.Itoa(s.names)
	inner := relation(e, spelled(append([]string{each}, e.Selector.Path[at:]...)))
	return fmt.Sprintf("(any %s as %s { %s })", spelled(e.Selector.Path[:at]), each, inner), nil
}

// through checks a selector against the fields. If it goes through a list of structs without saying which element, it
// returns how much of the selector names the list.
func (s *speller) through(sel grammar.Selector, bound []string) (int, error) {
	if len(sel.Path) == 0 || slices.Contains(bound, sel.Path[0]) {
		return 0, nil
	}
	in, list := s.in, 0
	for i, part := range sel.Path {
		switch in.Kind() {
		case reflect.Struct:
			field, ok := in.FieldByName(part)
			if !ok || field.Tag.Get("bexpr") == "-" {
				return 0, invalidSelector(sel)
			}
			in = field.Type
		case reflect.Map:
			in = in.Elem()
		case reflect.Slice:
			in = in.Elem()
			if _, err := strconv.Atoi(part); err == nil {
				continue
			}
			field, ok := in, in.Kind() == reflect.Struct
			if ok {
				var f reflect.StructField
				f, ok = in.FieldByName(part)
				field, ok = f.Type, ok && f.Tag.Get("bexpr") != "-"
			}
			if !ok {
				return 0, invalidSelector(sel)
			}
			in, list = field, i
		case reflect.Interface:
			return list, nil // what is below is known only when it is there
		default:
			return 0, invalidSelector(sel)
		}
	}
	return list, nil
}

// relation writes one comparison of the selector sel.
func relation(e *grammar.MatchExpression, sel string) string {
	value := ""
	if e.Value != nil {
		value = literal(e.Value.Raw)
	}
	switch e.Operator {
	case grammar.MatchEqual:
		return sel + " == " + value
	case grammar.MatchNotEqual:
		return sel + " != " + value
	case grammar.MatchIn:
		return value + " in " + sel
	case grammar.MatchNotIn:
		return value + " not in " + sel
	case grammar.MatchContains:
		return sel + " contains " + value
	case grammar.MatchNotContains:
		return sel + " not contains " + value
	case grammar.MatchMatches:
		return sel + " matches " + value
	case grammar.MatchNotMatches:
		return sel + " not matches " + value
	case grammar.MatchIsEmpty:
		return sel + " is empty"
	case grammar.MatchIsNotEmpty:
		return sel + " is not empty"
	case grammar.MatchIsNil:
		return sel + " is nil"
	case grammar.MatchIsNotNil:
		return sel + " is not nil"
	}
	return ""
}

var (
	identifier = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_/]*$`)
	position   = regexp.MustCompile(`^[0-9]+$`)
)

// spelled writes a selector.
func spelled(parts []string) string {
	var b strings.Builder
	for i, p := range parts {
		switch {
		case i == 0:
			b.WriteString(p)
		case identifier.MatchString(p) || position.MatchString(p):
			b.WriteString("." + p)
		default:
			b.WriteString("[" + literal(p) + "]")
		}
	}
	return b.String()
}

// literal writes a string so that the grammar, which ends one at the next quote whatever stands before it, reads it back.
func literal(s string) string {
	quoted := strconv.Quote(s)
	return `"` + strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `\u0022`) + `"`
}
