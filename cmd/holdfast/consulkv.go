package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

const kvHelp = `Usage: holdfast consul kv COMMAND [flags] [arguments]

  get KEY            print the value; -recurse everything below a prefix, -keys names only
  put KEY [VALUE]    write; @FILE and - (standard input) read the value
  delete KEY         remove; -recurse everything below a prefix

put and delete take -cas -modify-index N: only if the key was not changed since.
`

// consulKV reads and writes keys: kv get|put|delete.
func consulKV(args []string, std streams) error {
	usage := map[string]string{"get": "kv get [flags] KEY", "put": "kv put [flags] KEY [VALUE]", "delete": "kv delete [flags] KEY"}
	if len(args) == 0 || usage[args[0]] == "" {
		if len(args) > 0 && slices.Contains([]string{"-h", "-help", "--help", "help"}, args[0]) {
			fmt.Fprint(std.err, kvHelp)
			return nil
		}
		return &hinted{errors.New("expected consul kv get, put or delete"), "holdfast consul kv -help"}
	}
	set, c := clientFlags("kv " + args[0])
	recurse := set.Bool("recurse", false, "everything below a prefix (get, delete)")
	keys := set.Bool("keys", false, "names only (get)")
	cas := set.Bool("cas", false, "only if the key was not changed since -modify-index (put, delete)")
	index := set.Uint64("modify-index", 0, "with -cas; 0: only if the key does not exist")
	most := 1
	if args[0] == "put" {
		most = 2
	}
	if err := parse(set, args[1:], std, usage[args[0]], 0, most); err != nil {
		return err
	}
	if everything := (*recurse || *keys) && args[0] != "put"; set.NArg() == 0 && !everything {
		return &hinted{errors.New("KEY is missing: holdfast consul " + usage[args[0]]), "holdfast consul kv -help"}
	}
	key := strings.TrimPrefix(set.Arg(0), "/")
	path := "/v1/kv/" + (&url.URL{Path: key}).EscapedPath()
	q := url.Values{}
	if *cas {
		q.Set("cas", strconv.FormatUint(*index, 10))
	}
	switch args[0] {
	case "get":
		return c.kvGet(path, key, *recurse, *keys, std.out)
	case "put":
		return c.kvPut(path, q, set.Args(), std)
	case "delete":
		if *recurse {
			q.Set("recurse", "")
		}
		data, err := c.ask(http.MethodDelete, path, q, nil)
		if err == nil && strings.TrimSpace(string(data)) != "true" {
			err = errors.New("not deleted: the key was changed")
		}
		if err == nil {
			fmt.Fprintf(std.out, "Success! Deleted key%s: %s\n", map[bool]string{true: "s with prefix"}[*recurse], key)
		}
		return err
	}
	return nil
}

func (c *consulClient) kvGet(path, key string, recurse, keys bool, out io.Writer) error {
	if !recurse && !keys {
		data, err := c.ask(http.MethodGet, path, url.Values{"raw": {""}}, nil)
		var status *errStatus
		if errors.As(err, &status) && status.code == http.StatusNotFound {
			return fmt.Errorf("no key exists at: %s", key)
		}
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", data)
		}
		return err
	}
	q := url.Values{"recurse": {""}}
	if keys {
		q = url.Values{"keys": {""}, "separator": {"/"}}
		if recurse {
			q.Del("separator")
		}
	}
	data, err := c.ask(http.MethodGet, path, q, nil)
	var status *errStatus
	if errors.As(err, &status) && status.code == http.StatusNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if keys {
		var names []string
		if err := json.Unmarshal(data, &names); err != nil {
			return err
		}
		for _, n := range names {
			fmt.Fprintln(out, n)
		}
		return nil
	}
	var pairs []struct {
		Key   string
		Value []byte
	}
	if err := json.Unmarshal(data, &pairs); err != nil {
		return err
	}
	for _, p := range pairs {
		fmt.Fprintf(out, "%s:%s\n", p.Key, p.Value)
	}
	return nil
}

func (c *consulClient) kvPut(path string, q url.Values, args []string, std streams) error {
	var value []byte
	var err error
	if len(args) == 2 {
		switch v := args[1]; {
		case v == "-":
			value, err = io.ReadAll(std.in)
		case strings.HasPrefix(v, "@"):
			value, err = os.ReadFile(v[1:])
		default:
			value = []byte(v)
		}
	}
	if err != nil {
		return err
	}
	data, err := c.ask(http.MethodPut, path, q, value)
	if err == nil && strings.TrimSpace(string(data)) != "true" {
		err = errors.New("not written: the key was changed")
	}
	if err == nil {
		fmt.Fprintf(std.out, "Success! Data written to: %s\n", args[0])
	}
	return err
}
