package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"unicode/utf8"
)

// The JSON-lines form: every line is an object with exactly one of these. The first is the head.
type line struct {
	Head       *head            `json:"history,omitempty"`
	Operation  *Operation       `json:"operation,omitempty"`
	Watch      *Watch           `json:"watch,omitempty"`
	Told       *answerOf        `json:"told,omitempty"`
	Consul     *ConsulOperation `json:"consul,omitempty"`
	Revocation *Revocation      `json:"revocation,omitempty"`
}

type head struct {
	Format  int     `json:"format"`
	Name    string  `json:"name,omitempty"`
	Initial Initial `json:"initial,omitzero"`
	End     int64   `json:"end,omitempty"`
}

// answerOf is one response of the watch with that number; watches are numbered by their lines, from 0.
type answerOf struct {
	Watch int `json:"watch"`
	WatchResponse
}

const format = 1

// Write writes the history as JSON lines: one head, then a line for each operation, watch, response of a watch (after its
// watch), request to Consul and revocation. Text that is not UTF-8 cannot be written and is an error.
func (h History) Write(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<16)
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	put := func(l line, what string, i int) error {
		if !wellFormed(reflect.ValueOf(l)) {
			return fmt.Errorf("history: %s %d holds text that is not UTF-8, which JSON cannot carry", what, i)
		}
		return e.Encode(l)
	}
	err := put(line{Head: &head{format, h.Name, h.Initial, h.End}}, "head", 0)
	for i := range h.Operations {
		err = errors.Join(err, put(line{Operation: &h.Operations[i]}, "operation", i))
	}
	for i := range h.Watches {
		err = errors.Join(err, put(line{Watch: &h.Watches[i]}, "watch", i))
		for _, answer := range h.Watches[i].Responses {
			err = errors.Join(err, put(line{Told: &answerOf{i, answer}}, "a response of watch", i))
		}
	}
	for i := range h.Consul {
		err = errors.Join(err, put(line{Consul: &h.Consul[i]}, "request to Consul", i))
	}
	for i := range h.Revocations {
		err = errors.Join(err, put(line{Revocation: &h.Revocations[i]}, "revocation", i))
	}
	if err != nil {
		return err
	}
	return out.Flush()
}

// wellFormed reports whether all text in v is UTF-8.
func wellFormed(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		return utf8.ValidString(v.String())
	case reflect.Pointer:
		return v.IsNil() || wellFormed(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if !wellFormed(v.Field(i)) {
				return false
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if !wellFormed(v.Index(i)) {
				return false
			}
		}
	}
	return true
}

// Read reads what Write writes. A field or line that it does not know is an error.
func Read(r io.Reader) (History, error) {
	var h History
	d := json.NewDecoder(bufio.NewReaderSize(r, 1<<16))
	d.DisallowUnknownFields()
	for n := 1; ; n++ {
		var l line
		if err := d.Decode(&l); err == io.EOF && n > 1 {
			return h, nil
		} else if err != nil {
			return h, fmt.Errorf("history: entry %d: %w", n, err)
		}
		if err := h.add(l, n); err != nil {
			return h, fmt.Errorf("history: entry %d: %w", n, err)
		}
	}
}

func (h *History) add(l line, n int) error {
	if (l.Head != nil) != (n == 1) {
		return errors.New(`the first entry, and no other, is the head: {"history":{"format":1}}`)
	}
	switch {
	case l.Head != nil:
		if l.Head.Format != format {
			return fmt.Errorf("format %d; this program reads format %d", l.Head.Format, format)
		}
		h.Name, h.Initial, h.End = l.Head.Name, l.Head.Initial, l.Head.End
	case l.Operation != nil:
		h.Operations = append(h.Operations, *l.Operation)
	case l.Watch != nil:
		h.Watches = append(h.Watches, *l.Watch)
	case l.Told != nil:
		if l.Told.Watch < 0 || l.Told.Watch >= len(h.Watches) {
			return fmt.Errorf("a response of watch %d, of which there is no line before", l.Told.Watch)
		}
		w := &h.Watches[l.Told.Watch]
		w.Responses = append(w.Responses, l.Told.WatchResponse)
	case l.Consul != nil:
		h.Consul = append(h.Consul, *l.Consul)
	case l.Revocation != nil:
		h.Revocations = append(h.Revocations, *l.Revocation)
	default:
		return errors.New("an empty entry")
	}
	return nil
}

// Save writes the history to a file, whole or not at all.
func (h History) Save(name string) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	err = errors.Join(h.Write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Load reads what Save wrote.
func Load(name string) (History, error) {
	f, err := os.Open(name)
	if err != nil {
		return History{}, err
	}
	defer f.Close()
	h, err := Read(f)
	if err != nil {
		return h, fmt.Errorf("%s: %w", name, err)
	}
	return h, nil
}
