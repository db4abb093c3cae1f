package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// UnmarshalJSON takes a string as time.ParseDuration does, or a bare number of nanoseconds.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err == nil {
		if text == "" || string(data) == "null" {
			*d = 0
			return nil
		}
		parsed, err := time.ParseDuration(text)
		if err != nil {
			return err
		}
		*d = Duration(parsed)
		return nil
	}
	var number float64
	if err := json.Unmarshal(data, &number); err != nil {
		return fmt.Errorf("invalid duration %s", data)
	}
	*d = Duration(number)
	return nil
}

// MarshalJSON writes the duration as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// text is the duration as the catalog shows it: empty for none.
func (d Duration) text() string {
	if d == 0 {
		return ""
	}
	return time.Duration(d).String()
}

// UnmarshalJSON takes Consul's registration of a service.
func (s *ServiceDefinition) UnmarshalJSON(data []byte) error {
	type plain ServiceDefinition
	return strictly(data, (*plain)(s))
}

// UnmarshalJSON takes Consul's registration of a check, in the API's form or a configuration file's.
func (c *CheckDefinition) UnmarshalJSON(data []byte) error {
	type plain CheckDefinition
	return strictly(data, (*plain)(c))
}

// strictly decodes a JSON object into the struct that into points to. Keys match in any case and with or without
// underscores; one that matches no field is an error in the words of encoding/json.
func strictly(data []byte, into any) error {
	if string(bytes.TrimSpace(data)) == "null" {
		return nil
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(data, &given); err != nil {
		return err
	}
	fields := map[string]string{}
	for f := range reflect.TypeOf(into).Elem().Fields() {
		fields[bare(f.Name)] = f.Name
	}
	named := make(map[string]json.RawMessage, len(given))
	for key, value := range given {
		name, ok := fields[bare(key)]
		if !ok {
			return fmt.Errorf("json: unknown field %q", key)
		}
		if _, twice := named[name]; twice {
			return fmt.Errorf("json: field %q is given twice", name)
		}
		named[name] = value
	}
	exact, err := json.Marshal(named)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(exact))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func bare(key string) string { return strings.ToLower(strings.ReplaceAll(key, "_", "")) }

// hollow reports whether a JSON value says nothing: null, false, 0, "", an empty list, or an object of nothing else. An
// object in an object says nothing only if it may be nested: {"SidecarService":{}} asks for a sidecar.
func hollow(data json.RawMessage, nested bool) bool {
	if len(data) == 0 {
		return true
	}
	var v any
	return json.Unmarshal(data, &v) == nil && hollowValue(v, true, nested)
}

func hollowValue(v any, top, nested bool) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			if !hollowValue(e, false, nested) {
				return false
			}
		}
		return top || nested
	case []any:
		return len(v) == 0
	case nil:
		return true
	default:
		return reflect.ValueOf(v).IsZero()
	}
}
