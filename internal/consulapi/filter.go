package consulapi

import (
	"net/http"
	"reflect"
	"unicode/utf8"

	"github.com/hashicorp/go-bexpr"
	"github.com/hashicorp/go-bexpr/grammar"
)

// filter is a compiled ?filter; nil keeps everything.
type filter struct{ by *bexpr.Evaluator }

// compile reads a filter for values of the type of like.
func compile(expression string, like any) (*filter, error) {
	if expression == "" {
		return nil, nil
	}
	if len(expression) > maxFilter {
		return nil, refuse(http.StatusBadRequest, "Invalid filter: it is longer than %d bytes", maxFilter)
	}
	if !utf8.ValidString(expression) {
		return nil, refuse(http.StatusBadRequest, "Invalid filter: it is not UTF-8")
	}
	tree, err := grammar.Parse("", []byte(expression), grammar.MaxExpressions(maxExpressions))
	if err == nil {
		s := speller{in: reflect.TypeOf(like)}
		spelled := ""
		if spelled, err = s.spell(tree.(grammar.Expression), nil); s.names > 0 {
			expression = spelled
		}
	}
	var by *bexpr.Evaluator
	if err == nil {
		by, err = bexpr.CreateEvaluator(expression, bexpr.WithMaxExpressions(maxExpressions))
	}
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "Failed to create boolean expression evaluator: %v", err)
	}
	return &filter{by}, nil
}

// maxExpressions bounds the work of reading one filter, which grows fourfold with each parenthesis inside another: the
// sixth is the last that always fits.
const maxExpressions = 2_000_000

// keeps reports whether v passes.
func (f *filter) keeps(v any) (bool, error) {
	if f == nil {
		return true, nil
	}
	ok, err := f.by.Evaluate(v)
	if err != nil {
		return false, refuse(http.StatusInternalServerError, "Failed to execute filter: %v", err)
	}
	return ok, nil
}

// kept returns the elements of all that pass a filter.
func kept[T any](expression string, all []T) ([]T, error) {
	var like T
	f, err := compile(expression, like)
	if err != nil || f == nil {
		return all, err
	}
	out := all[:0]
	for _, v := range all {
		ok, err := f.keeps(v)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, v)
		}
	}
	return out, nil
}
