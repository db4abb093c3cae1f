package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// page is what a guide asks to be run.
type page struct {
	name  string
	steps []step
}

// step is one command of a guide and what the page promises that it prints.
type step struct {
	line       int // of the command in the page
	command    string
	want       []string
	exit       int
	background string // name of its log; empty: it is waited for
	wait       bool   // tried again until it succeeds and prints what is promised
	root       bool
}

var directive = regexp.MustCompile(`^<!-- (background|wait|root)(?:: *([a-z0-9-]+))? -->$`)

var exitLine = regexp.MustCompile(`^\[exit (\d+)\]$`)

// parse finds the console blocks of a guide. Directives are HTML comments on the lines before a block, which a reader of the page does
// not see: `background: NAME` leaves its command running, `wait` tries its commands again until they hold, `root` needs uid 0.
func parse(name, text string) (page, error) {
	p := page{name: name}
	var mark step
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		if m := directive.FindStringSubmatch(line); m != nil {
			switch m[1] {
			case "background":
				mark.background = m[2]
			case "wait":
				mark.wait = true
			case "root":
				mark.root = true
			}
			continue
		}
		if strings.HasPrefix(line, "<!-- ") && regexp.MustCompile(`^<!-- (background|wait|root)`).MatchString(line) {
			return p, fmt.Errorf("%s:%d: a directive that is none: %s", name, i+1, line)
		}
		if line != "```console" {
			if line != "" {
				mark = step{}
			}
			continue
		}
		end := i + 1
		for end < len(lines) && strings.TrimSpace(lines[end]) != "```" {
			end++
		}
		if end == len(lines) {
			return p, fmt.Errorf("%s:%d: a block without end", name, i+1)
		}
		steps, err := block(lines[i+1:end], i+2, mark)
		if err != nil {
			return p, fmt.Errorf("%s: %w", name, err)
		}
		p.steps = append(p.steps, steps...)
		mark, i = step{}, end
	}
	if len(p.steps) == 0 {
		return p, fmt.Errorf("%s: no command in it", name)
	}
	return p, nil
}

var heredoc = regexp.MustCompile(`<<-?\s*['"]?([A-Za-z_]+)['"]?`)

// block splits one console block into its commands. A command goes on after a trailing backslash, in a here-document, and on
// lines that begin with the shell's second prompt.
func block(lines []string, first int, mark step) (steps []step, err error) {
	for i := 0; i < len(lines); i++ {
		command, ok := strings.CutPrefix(lines[i], "$ ")
		if !ok {
			if len(steps) == 0 {
				return nil, fmt.Errorf("line %d: output before the first command", first+i)
			}
			last := &steps[len(steps)-1]
			if m := exitLine.FindStringSubmatch(lines[i]); m != nil {
				fmt.Sscan(m[1], &last.exit)
				continue
			}
			last.want = append(last.want, lines[i])
			continue
		}
		s := mark
		s.line = first + i
		until := ""
		if m := heredoc.FindStringSubmatch(command); m != nil {
			until = m[1]
		}
		for until != "" || strings.HasSuffix(lines[i], `\`) || i+1 < len(lines) && strings.HasPrefix(lines[i+1], "> ") {
			i++
			if i == len(lines) {
				return nil, fmt.Errorf("line %d: the command does not end in its block", s.line)
			}
			next := lines[i]
			command += "\n" + strings.TrimPrefix(next, "> ")
			if until != "" && strings.TrimPrefix(next, "> ") == until {
				until = ""
				if !strings.HasPrefix(next, "> ") {
					break
				}
			}
		}
		s.command = command
		steps = append(steps, s)
	}
	if mark.background != "" && (len(steps) != 1 || len(steps[0].want) > 0) {
		return nil, errors.New("a background block has one command and promises no output")
	}
	return steps, nil
}

// match compares output with what the page promises: … inside a line stands for any text in it, a line that is only … for any lines.
func match(want, got []string) bool {
	if len(want) == 0 {
		return len(got) == 0
	}
	if want[0] == "…" {
		for i := 0; i <= len(got); i++ {
			if match(want[1:], got[i:]) {
				return true
			}
		}
		return false
	}
	return len(got) > 0 && matchLine(want[0], got[0]) && match(want[1:], got[1:])
}

func matchLine(want, got string) bool {
	parts := strings.Split(strings.TrimRight(want, " \t"), "…")
	got = strings.TrimRight(got, " \t\r")
	if len(parts) == 1 {
		return parts[0] == got
	}
	if !strings.HasPrefix(got, parts[0]) {
		return false
	}
	got = got[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		at := strings.Index(got, p)
		if at < 0 {
			return false
		}
		got = got[at+len(p):]
	}
	return strings.HasSuffix(got, parts[len(parts)-1])
}
