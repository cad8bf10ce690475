// Command write makes the manual pages anew in the current directory.
package main

import (
	"log"

	"github.com/bonafide-archive/bonafide/cmd"
)

func main() {
	if err := cmd.WriteManual("."); err != nil {
		log.Fatal(err)
	}
}
