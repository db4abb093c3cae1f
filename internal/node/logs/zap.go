// Package logs writes the log: zap's JSON and console lines as etcd's users and tests read them, and lines for people.
//
// Job: slog handlers for three formats, outputs (stderr, stdout, files with etcd's rotation, syslog). Non-job: what is logged,
// redaction (values that are secrets redact themselves).
//
// Invariants: one record is one line and one write. Every JSON line has level, ts, caller and msg, in that order. A
// handler never fails a caller: what cannot be written is lost.
package logs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"
)

// LevelFatal is the level of the line that says why the process ends.
const LevelFatal = slog.LevelError + 4

const zapTime = "2006-01-02T15:04:05.000000Z0700"

// style is how a handler writes a record.
type style uint8

const (
	styleJSON style = iota
	styleConsole
	styleText
)

// handler writes records in one of the styles. Attributes given by WithAttrs are kept with the groups they belong to.
type handler struct {
	style  style
	level  slog.Leveler
	out    *output
	syslog *hostLog // nil: records do not go there
	attrs  []slog.Attr
	groups []string
}

// output serializes writes.
type output struct {
	mu sync.Mutex
	w  io.Writer
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = slices.Concat(h.attrs, nest(h.groups, attrs))
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.groups = slices.Concat(h.groups, []string{name})
	return &c
}

// nest puts attrs into groups, the outermost first.
func nest(groups []string, attrs []slog.Attr) []slog.Attr {
	if len(attrs) == 0 {
		return nil
	}
	for _, g := range slices.Backward(groups) {
		attrs = []slog.Attr{{Key: g, Value: slog.GroupValue(attrs...)}}
	}
	return attrs
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var own []slog.Attr
	r.Attrs(func(a slog.Attr) bool {
		own = append(own, a)
		return true
	})
	attrs := slices.Concat(h.attrs, nest(h.groups, own))
	line := make([]byte, 0, 256)
	switch h.style {
	case styleJSON:
		line = appendJSONLine(line, r, attrs)
	case styleConsole:
		line = appendConsoleLine(line, r, attrs)
	case styleText:
		line = appendTextLine(line, r, attrs)
	}
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	_, err := h.out.w.Write(line)
	if h.syslog != nil {
		err = errors.Join(err, h.syslog.line(r.Level, string(appendPairs([]byte(r.Message), "", attrs))))
	}
	return err
}

// levelName is zap's name of a level.
func levelName(l slog.Level) string {
	switch {
	case l >= LevelFatal:
		return "fatal"
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

// caller is the place of the call, shortened to the package's directory as zap does.
func caller(pc uintptr) string {
	if pc == 0 {
		return "undefined"
	}
	f, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	return filepath.Base(filepath.Dir(f.File)) + "/" + filepath.Base(f.File) + ":" + strconv.Itoa(f.Line)
}

func appendJSONLine(b []byte, r slog.Record, attrs []slog.Attr) []byte {
	b = append(b, `{"level":"`...)
	b = append(b, levelName(r.Level)...)
	b = append(b, `","ts":"`...)
	b = r.Time.AppendFormat(b, zapTime)
	b = append(b, `","caller":`...)
	b = appendString(b, caller(r.PC))
	b = append(b, `,"msg":`...)
	b = appendString(b, r.Message)
	b = appendFields(b, attrs, true)
	return append(b, '}', '\n')
}

func appendConsoleLine(b []byte, r slog.Record, attrs []slog.Attr) []byte {
	b = r.Time.AppendFormat(b, zapTime)
	b = append(b, '\t')
	b = append(b, levelName(r.Level)...)
	b = append(b, '\t')
	b = append(b, caller(r.PC)...)
	b = append(b, '\t')
	b = append(b, r.Message...)
	if len(attrs) > 0 {
		b = append(b, '\t', '{')
		b = appendFields(b, attrs, false)
		b = append(b, '}')
	}
	return append(b, '\n')
}

// appendFields appends "key":value for each attribute; with a leading comma if more is set.
func appendFields(b []byte, attrs []slog.Attr, more bool) []byte {
	for _, a := range attrs {
		v := a.Value.Resolve()
		if a.Key == "" && v.Kind() == slog.KindGroup { // an inline group
			before := len(b)
			b = appendFields(b, v.Group(), more)
			more = more || len(b) > before
			continue
		}
		if a.Key == "" && v.Equal(slog.Value{}) {
			continue
		}
		if more {
			b = append(b, ',')
		}
		more = true
		b = appendString(b, a.Key)
		b = append(b, ':')
		b = appendValue(b, v)
	}
	return b
}

func appendValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindString:
		return appendString(b, v.String())
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindDuration:
		return appendString(b, v.Duration().String())
	case slog.KindTime:
		return appendString(b, v.Time().Format(zapTime))
	case slog.KindGroup:
		b = append(b, '{')
		b = appendFields(b, v.Group(), false)
		return append(b, '}')
	}
	switch x := v.Any().(type) {
	case error:
		return appendString(b, x.Error())
	case json.Marshaler:
		return appendJSON(b, x)
	case fmt.Stringer:
		return appendString(b, x.String())
	default:
		return appendJSON(b, x)
	}
}

func appendJSON(b []byte, x any) []byte {
	data, err := json.Marshal(x)
	if err != nil {
		return appendString(b, fmt.Sprint(x))
	}
	return append(b, data...)
}

// appendString quotes s as JSON; what is not UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	data, err := json.Marshal(s)
	if err != nil { // a string always marshals
		return append(b, `""`...)
	}
	return append(b, data...)
}

// appendTextLine writes for people: time, level, message, key=value.
func appendTextLine(b []byte, r slog.Record, attrs []slog.Attr) []byte {
	b = r.Time.AppendFormat(b, "2006-01-02 15:04:05.000 ")
	b = fmt.Appendf(b, "%-5s ", levelName(r.Level))
	b = append(b, r.Message...)
	b = appendPairs(b, "", attrs)
	return append(b, '\n')
}

func appendPairs(b []byte, prefix string, attrs []slog.Attr) []byte {
	for _, a := range attrs {
		v := a.Value.Resolve()
		if v.Kind() == slog.KindGroup {
			inner := prefix
			if a.Key != "" {
				inner += a.Key + "."
			}
			b = appendPairs(b, inner, v.Group())
			continue
		}
		b = append(b, ' ')
		b = append(b, prefix...)
		b = append(b, a.Key...)
		b = append(b, '=')
		text := v.String()
		if v.Kind() == slog.KindTime {
			text = v.Time().Format(time.RFC3339)
		}
		if text == "" || !plain(text) {
			text = strconv.Quote(text)
		}
		b = append(b, text...)
	}
	return b
}

func plain(s string) bool {
	for _, c := range s {
		if c <= ' ' || c == '"' || c == '=' || c == 0x7f || c == 0xfffd {
			return false
		}
	}
	return true
}
