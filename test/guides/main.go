// Command guides follows the pages of docs/guides as a reader would: it runs every command of a page in one shell, prints it and what came back,
// and fails where that is not what the page promises.
//
//	go run ./guides -binary ../bin/holdfast ../docs/guides/*.md
//
// A guide starts in an empty directory that is also its HOME, with holdfast in PATH. As root it runs in network, process and mount
// namespaces of its own, so that the fixed ports of the pages are free and nothing it starts outlives it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	binary := flag.String("binary", "", "path of the holdfast binary")
	keep := flag.Bool("keep", false, "keep each guide's directory and say where it is")
	flag.Parse()
	if *binary == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: guides -binary PATH GUIDE.md ...")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	abs, err := filepath.Abs(*binary)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	failed := 0
	for _, file := range flag.Args() {
		if err := follow(ctx, file, options{binary: abs, keep: *keep, out: os.Stdout}); err != nil {
			fmt.Fprintf(os.Stdout, "FAIL %s: %v\n", file, err)
			failed++
		}
	}
	if failed > 0 {
		fmt.Fprintf(os.Stdout, "%d of %d guides failed\n", failed, flag.NArg())
		os.Exit(1)
	}
	fmt.Fprintf(os.Stdout, "%d guides: every command printed what its page promises\n", flag.NArg())
}

func follow(ctx context.Context, file string, o options) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	p, err := parse(filepath.Base(file), string(text))
	if err != nil {
		return err
	}
	fmt.Fprintf(o.out, "==== %s: %d commands\n", file, len(p.steps))
	start := time.Now()
	if err := run(ctx, p, o); err != nil {
		return err
	}
	fmt.Fprintf(o.out, "ok   %s (%s)\n", file, time.Since(start).Round(100*time.Millisecond))
	return nil
}
