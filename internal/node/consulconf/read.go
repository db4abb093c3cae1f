package consulconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
)

// reader collects settings from files and flags, in order.
type reader struct {
	settings *settings
	keys     map[string]key
	warnings []string
	written  map[string]bool
}

func newReader() *reader {
	r := &reader{settings: defaults(), keys: map[string]key{}, written: map[string]bool{}}
	for _, k := range table() {
		r.keys[k.name] = k
	}
	return r
}

// file reads one JSON file over what was read before: later values win, lists grow, maps are merged.
func (r *reader) file(name string, data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var top map[string]any
	if err := dec.Decode(&top); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // an empty file says nothing
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: there is more after the JSON object", name)
	}
	if twice := repeated(data); twice != "" {
		return fmt.Errorf("%s: the key %s is written twice", name, twice)
	}
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(top)) {
		errs = append(errs, r.take(k, top[k])...)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// repeated finds a key that stands twice in one object; encoding/json would take the last.
func repeated(data []byte) string {
	dec := json.NewDecoder(bytes.NewReader(data))
	var stack []map[string]bool // nil for a list
	var expectKey []bool
	for {
		t, err := dec.Token()
		if err != nil {
			return ""
		}
		top := len(stack) - 1
		switch v := t.(type) {
		case json.Delim:
			switch v {
			case '{':
				stack, expectKey = append(stack, map[string]bool{}), append(expectKey, true)
				continue
			case '[':
				stack, expectKey = append(stack, nil), append(expectKey, false)
				continue
			}
			stack, expectKey = stack[:top], expectKey[:top]
			top--
		case string:
			if top >= 0 && stack[top] != nil && expectKey[top] {
				if stack[top][v] {
					return v
				}
				stack[top][v], expectKey[top] = true, false
				continue
			}
		}
		if top >= 0 && stack[top] != nil {
			expectKey[top] = true // a value is over
		}
	}
}

// take brings one value to where it belongs, or to everywhere that it holds.
func (r *reader) take(name string, v any) []error {
	k, ok := r.keys[name]
	if ok {
		if err := r.apply(k, name, v); err != nil {
			return []error{err}
		}
		return nil
	}
	if sub, isMap := v.(map[string]any); isMap && r.isGroup(name) {
		var errs []error
		for _, s := range slices.Sorted(maps.Keys(sub)) {
			errs = append(errs, r.take(name+"."+s, sub[s])...)
		}
		return errs
	}
	if v == nil && r.isGroup(name) {
		return nil
	}
	for i := len(name); i > 0; i = strings.LastIndexByte(name[:i], '.') {
		if i < len(name) {
			if k, ok := r.keys[name[:i]+".*"]; ok {
				if err := r.apply(k, name, v); err != nil {
					return []error{err}
				}
				return nil
			}
		}
	}
	if r.isGroup(name) {
		return []error{fmt.Errorf("%s: expected an object", name)}
	}
	return []error{fmt.Errorf("invalid config key %s", name)}
}

// isGroup reports whether keys below name are known.
func (r *reader) isGroup(name string) bool {
	for k := range r.keys {
		if strings.HasPrefix(k, name+".") {
			return true
		}
	}
	return false
}

// apply does with one value what its key's class says.
func (r *reader) apply(k key, name string, v any) error {
	if v == nil { // as if it were not written
		return nil
	}
	switch k.class {
	case silent:
		return nil
	case idle:
		r.warn(name, fmt.Sprintf("%s has no effect: %s", name, k.what))
		return nil
	case refused:
		if slices.ContainsFunc(k.only, func(o any) bool { return o == v }) {
			return nil
		}
		return fmt.Errorf("%s is refused: %s", name, k.what)
	case renamed:
		r.warn(name, fmt.Sprintf("the key %q is deprecated: %s", name, k.what))
	case obeyed:
	}
	if err := assign(k.bind(r.settings), v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.written[name] = true
	return nil
}

func (r *reader) warn(name, text string) {
	if !slices.Contains(r.warnings, text) {
		r.warnings = append(r.warnings, text)
	}
}

var errKind = errors.New("wrong type")

// assign stores v, as encoding/json decodes it, behind a pointer to one of the types that keys have.
func assign(to, v any) error {
	switch to := to.(type) {
	case *string, *bool, *int, *time.Duration:
		return scalar(to, v)
	case **string:
		*to = new(string)
		return scalar(*to, v)
	case **bool:
		*to = new(bool)
		return scalar(*to, v)
	case *[]string:
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, e := range list {
			var s string
			if err := scalar(&s, e); err != nil {
				return err
			}
			*to = append(*to, s)
		}
		return nil
	case *map[string]string:
		return assignMap(to, v, func(e any) (s string, err error) { err = scalar(&s, e); return s, err })
	case *map[string]time.Duration:
		return assignMap(to, v, func(e any) (d time.Duration, err error) { err = scalar(&d, e); return d, err })
	case *[]map[string]any:
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, e := range list {
			m, ok := e.(map[string]any)
			if !ok {
				return fmt.Errorf("%w: expected an object", errKind)
			}
			*to = append(*to, m)
		}
		return nil
	}
	return fmt.Errorf("no value of type %s can be written", reflect.TypeOf(to))
}

func assignMap[T any](to *map[string]T, v any, one func(any) (T, error)) error {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%w: expected an object", errKind)
	}
	if *to == nil {
		*to = map[string]T{}
	}
	for k, e := range m {
		t, err := one(e)
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		(*to)[k] = t
	}
	return nil
}

func scalar(to, v any) error {
	switch to := to.(type) {
	case *string:
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("%w: expected a string", errKind)
		}
		*to = s
	case *bool:
		b, ok := v.(bool)
		if !ok {
			return fmt.Errorf("%w: expected true or false", errKind)
		}
		*to = b
	case *int:
		n, ok := v.(json.Number)
		if !ok {
			return fmt.Errorf("%w: expected a number", errKind)
		}
		i, err := n.Int64()
		if err != nil || i > math.MaxInt32 || i < math.MinInt32 {
			return fmt.Errorf("%w: %s is no whole number in range", errKind, n)
		}
		*to = int(i)
	case *time.Duration:
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf(`%w: expected a duration such as "10s"`, errKind)
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return err
		}
		*to = d
	}
	return nil
}
