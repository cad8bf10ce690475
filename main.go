// Command bonafide keeps an archive whose names are bound to their contents
// once and for ever, by replicas of which none has to be trusted while it
// serves.
package main

import (
	"os"

	"github.com/bonafide-archive/bonafide/cmd"
)

func main() { os.Exit(cmd.Execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
