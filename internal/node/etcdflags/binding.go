package etcdflags

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast.dev/holdfast/internal/node/config"
)

// binding is a flag's value: text on one side, a field of a Config on the other.
type binding interface {
	String() string
	Set(string) error
	target() any // the pointer into the Config; nil if the flag is bound to none
}

// field binds a Config field through a parser and a printer.
type field[T any] struct {
	ptr    *T
	parse  func(string) (T, error)
	print  func(T) string
	bool   bool
	number bool          // shown as a number, by its text
	unit   time.Duration // of a bare number in a configuration file; 0: the value is no duration
}

func (f field[T]) String() string {
	if f.ptr == nil {
		return ""
	}
	return f.print(*f.ptr)
}

func (f field[T]) Set(s string) error {
	v, err := f.parse(s)
	if err != nil {
		return err
	}
	*f.ptr = v
	return nil
}

func (f field[T]) isNumber() bool          { return f.number }
func (f field[T]) target() any             { return f.ptr }
func (f field[T]) IsBoolFlag() bool        { return f.bool }
func (f field[T]) bareUnit() time.Duration { return f.unit }

func text(p *string) binding {
	return field[string]{ptr: p, parse: func(s string) (string, error) { return s, nil }, print: func(s string) string { return s }}
}

func boolean(p *bool) binding {
	return field[bool]{ptr: p, parse: strconv.ParseBool, print: strconv.FormatBool, bool: true}
}

func number[T ~int | ~int64 | ~uint | ~uint32 | ~uint64](p *T) binding {
	parse := func(s string) (T, error) {
		var zero T
		if zero--; zero > 0 { // unsigned
			n, err := strconv.ParseUint(s, 0, 64)
			if err == nil && uint64(T(n)) != n {
				err = strconv.ErrRange
			}
			return T(n), err
		}
		n, err := strconv.ParseInt(s, 0, 64)
		if err == nil && int64(T(n)) != n {
			err = strconv.ErrRange
		}
		return T(n), err
	}
	return field[T]{ptr: p, parse: parse, print: func(n T) string { return fmt.Sprint(n) }}
}

func duration(p *time.Duration) binding {
	return field[time.Duration]{ptr: p, parse: time.ParseDuration, print: time.Duration.String, unit: time.Nanosecond}
}

// milliseconds binds a duration that etcd writes as a number of milliseconds.
func milliseconds(p *time.Duration) binding {
	return field[time.Duration]{
		ptr: p,
		parse: func(s string) (time.Duration, error) {
			n, err := strconv.ParseUint(s, 0, 32)
			return time.Duration(n) * time.Millisecond, err
		},
		print: func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) },
	}
}

// entries binds a number of log entries whose default is etcd's in name only: left alone, bytes decide.
func entries(p *uint64, shown uint64) binding {
	return field[uint64]{
		ptr: p, parse: func(s string) (uint64, error) { return strconv.ParseUint(s, 0, 64) },
		print: func(n uint64) string {
			if n == 0 {
				n = shown
			}
			return strconv.FormatUint(n, 10)
		},
		number: true,
	}
}

func urlList(p *config.URLs) binding {
	return field[config.URLs]{ptr: p, parse: config.ParseURLs, print: config.URLs.String}
}

func list(p *[]string) binding {
	return field[[]string]{ptr: p, print: func(l []string) string { return strings.Join(l, ",") }, parse: func(s string) ([]string, error) {
		var out []string
		for _, v := range strings.Split(s, ",") {
			if v = strings.TrimSpace(v); v != "" {
				out = append(out, v)
			}
		}
		return out, nil
	}}
}

// choice binds one of a few words.
func choice(p *string, words ...string) binding {
	return field[string]{ptr: p, print: func(s string) string { return s }, parse: func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", fmt.Errorf("invalid value %q", s)
		}
		return s, nil
	}}
}

// unbound is the value of a flag that no field carries: its text is kept only to be shown.
type unbound struct {
	value string
	check func(string) error
	bool  bool
}

func (u *unbound) String() string { return u.value }

func (u *unbound) Set(s string) error {
	if u.check != nil {
		if err := u.check(s); err != nil {
			return err
		}
	}
	u.value = s
	return nil
}

func (u *unbound) target() any      { return nil }
func (u *unbound) IsBoolFlag() bool { return u.bool }

func isBool(s string) error {
	if _, err := strconv.ParseBool(s); err != nil {
		return fmt.Errorf("parse error")
	}
	return nil
}

func numeric(s string) error {
	if _, err := strconv.ParseInt(s, 0, 64); err != nil {
		return fmt.Errorf("parse error")
	}
	return nil
}

func isDuration(s string) error {
	if _, err := time.ParseDuration(s); err != nil {
		return fmt.Errorf("parse error")
	}
	return nil
}
