// Package cmd is the command line: it reads flags, environment and
// configuration, runs the other packages, and turns what they return into
// output, hints and exit statuses. It alone knows terminals, signals and where
// files lie on a machine.
package cmd

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"
)

// app is one run of the program.
type app struct {
	*printer
	stdin   io.Reader
	v       *viper.Viper
	told    map[string]bool // warnings about results
	running bool            // a command has begun: what fails from here on is not its usage
}

// Execute runs one command line and returns the exit status.
func Execute(args []string, stdin io.Reader, stdout, stderr io.Writer) (status int) {
	a := &app{printer: newPrinter(stdout, stderr), stdin: stdin, v: viper.New(), told: make(map[string]bool)}
	defer func() {
		if p := recover(); p != nil {
			status = a.fail(a.panicked(p))
		}
	}()
	ctx, stop := interruptible(context.Background())
	defer stop()
	root := a.rootCommand()
	root.SetArgs(args)
	ran, err := root.ExecuteContextC(ctx)
	return a.fail(a.explain(ctx, ran, err))
}

// panicked is what a user is told of our own mistakes.
func (a *app) panicked(p any) error {
	if os.Getenv("BONAFIDE_DEBUG") != "" {
		panic(p)
	}
	return withHint(errors.New("internal error"),
		"this is a bug in bonafide; BONAFIDE_DEBUG=1 shows where")
}

// explain gives the error of a command its exit status where cobra or an
// interrupt made it.
func (a *app) explain(ctx context.Context, ran *cobra.Command, err error) error {
	switch {
	case err == nil:
		return nil
	case ran != nil && checks(ran) && !errors.As(err, new(*silentError)):
		return a.checkFailed(err)
	case !a.running && ran != nil:
		return misused(ran, err)
	case ctx.Err() != nil && exitStatus(err) != exitInterrupted:
		err = withStatus(exitInterrupted, &interruptedError{err})
		if goesOn(ran) {
			err = withHint(err, "the same command, run again, goes on where this one ended")
		}
	}
	return err
}

// interruptedError says what an interrupt ended.
type interruptedError struct{ err error }

// Error leaves out that a context has ended: the interrupt did that.
func (e *interruptedError) Error() string {
	what := strings.TrimSuffix(e.err.Error(), context.Canceled.Error())
	return strings.TrimSuffix("interrupted: "+what, ": ")
}

func (e *interruptedError) Unwrap() error { return e.err }

// goesOn reports whether a command that was interrupted repeats nothing that it has
// done when it is run again. Of what went to the standard output nothing is kept.
func goesOn(c *cobra.Command) bool {
	if c == nil || c.Name() != "get" {
		return c != nil && c.Name() == "add"
	}
	out := c.Flags().Lookup("output").Value.String()
	return out != "" && out != "-" || c.Flags().Changed("recursive")
}

// misused is the error of a command that could not begin.
func misused(c *cobra.Command, err error) error {
	if exitStatus(err) == exitUsage { // the configuration's, which says what is wrong
		return err
	}
	return withHint(withStatus(exitUsage, err), "%s --help", c.CommandPath())
}

// interruptible returns a context that ends at SIGINT and SIGTERM. What does
// not end soon after is ended: it may be reading from a terminal.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			cancel(causes[s])
		case <-ctx.Done():
			return
		}
		signal.Stop(signals) // a second one ends the process at once
		time.Sleep(patience)
		os.Exit(exitInterrupted)
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

var (
	errInterrupted = errors.New("interrupted")
	errTerminated  = errors.New("terminated")

	causes = map[os.Signal]error{os.Interrupt: errInterrupted, syscall.SIGTERM: errTerminated}
)

// patience is how long a command may take to end after an interrupt. A server
// stops its children, which stop their requests, in less.
const patience = 15 * time.Second

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "bonafide",
		Short: "An archive whose names are bound once and for ever",
		Long: `Bonafide keeps an archive: names, each bound to its content once and for ever.
3f+1 replicas keep it. While they serve, none of them has to be trusted: what a
client gets is right, or proven absent, or refused. Once in a while, in a short
update phase, they agree on what was added.

To try it: bonafide tour. To keep a trial archive on this machine: bonafide serve.`,
		SilenceErrors: true, SilenceUsage: true,
		Args:              cobra.NoArgs,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: a.prepare,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.stdin)
	f := root.PersistentFlags()
	f.String("config", "", "configuration `file` (default $XDG_CONFIG_HOME/bonafide/config.yaml)")
	f.Bool("json", false, "print JSON lines, each with message_type and kind")
	f.BoolP("quiet", "q", false, "print no commentary")
	f.Duration("timeout", 10*time.Second, "the longest `duration` to wait without any progress")
	root.AddCommand(a.commands()...)
	root.InitDefaultCompletionCmd()
	appendExitStatus(root)
	root.AddCommand(topicCommands()...)
	a.noteStart(root)
	return root
}

func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.serveCommand(), a.addCommand(), a.getCommand(), a.receiptCommand(), a.updateCommand(), a.verifyCommand(),
		a.auditCommand(), a.lsCommand(), a.logCommand(), a.statusCommand(), a.serviceCommand(),
		a.guardCommand(), a.initCommand(), a.tourCommand(), a.benchCommand(), a.versionCommand(),
	}
}

// appendExitStatus writes the table of exit statuses below every description.
func appendExitStatus(c *cobra.Command) {
	if c.Long == "" {
		c.Long = c.Short + "."
	}
	_, path, _ := strings.Cut(c.CommandPath(), " ")
	c.Long += "\n\n" + exitHelp(path)
	for _, sub := range c.Commands() {
		appendExitStatus(sub)
	}
}

// noteStart has every command note that it has begun: flags and arguments are
// in order.
func (a *app) noteStart(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			a.running = true
			return run(c, args)
		}
	}
	for _, sub := range c.Commands() {
		a.noteStart(sub)
	}
}

// prepare reads the configuration and sets up the output before a command runs.
func (a *app) prepare(c *cobra.Command, _ []string) error {
	if err := a.configure(c); err != nil {
		return err
	}
	a.printer.json, a.printer.quiet = a.v.GetBool("json"), a.v.GetBool("quiet")
	return nil
}
