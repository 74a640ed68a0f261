package man

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"postern/internal/owned"
)

// Write writes the pages of a command of this version, and of all below it, into dir. A page
// takes the place of what has its name: a link is not followed.
func Write(cmd *cobra.Command, version string, dir *os.Root) (pages int, err error) {
	if cmd.Hidden || cmd.Name() == "help" {
		return 0, nil
	}
	readable := func(f *os.File) error { return f.Chmod(0o644) }
	if err := owned.Replace(dir, pageName(cmd)+".1", []byte(page(cmd, version)), readable); err != nil {
		return 0, err
	}
	pages = 1
	for _, sub := range cmd.Commands() {
		n, err := Write(sub, version, dir)
		if err != nil {
			return 0, err
		}
		pages += n
	}
	return pages, nil
}

func pageName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "-")
}

// page is the page of a command in the macros of man(7).
func page(cmd *cobra.Command, version string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"postern %s\" Postern\n", roff(strings.ToUpper(pageName(cmd))), roff(version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(pageName(cmd)), roff(cmd.Short))
	_, arguments, _ := strings.Cut(cmd.UseLine(), cmd.CommandPath())
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n%s", roff(cmd.CommandPath()), roffLine(strings.TrimSpace(arguments)))
	if cmd.Long != "" {
		b.WriteString(".SH DESCRIPTION\n")
		roffText(&b, cmd.Long)
	}
	options(&b, "OPTIONS", cmd.NonInheritedFlags())
	options(&b, "OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		b.WriteString(".SH EXAMPLES\n")
		roffText(&b, cmd.Example)
	}
	var also []string
	if cmd.HasParent() {
		also = append(also, pageName(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			also = append(also, pageName(sub))
		}
	}
	if len(also) > 0 {
		fmt.Fprintf(&b, ".SH SEE ALSO\n%s(1)\n", roff(strings.Join(also, "(1), ")))
	}
	return b.String()
}

func options(b *strings.Builder, head string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", head)
	flags.VisitAll(func(f *pflag.Flag) {
		value, usage := pflag.UnquoteUsage(f)
		name := strings.TrimSpace("--" + f.Name + " " + value)
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		switch f.DefValue {
		case "", "0", "false", "[]":
		default:
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s", roff(name), roffLine(usage))
	})
}

// roffText writes text of the help: paragraphs, and indented lines as they are.
func roffText(b *strings.Builder, text string) {
	verbatim, between := false, true
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			between = true
			continue
		}
		if indented := strings.HasPrefix(line, "  "); indented != verbatim || between {
			if verbatim {
				b.WriteString(".fi\n")
			}
			if between {
				b.WriteString(".PP\n")
			}
			if indented {
				b.WriteString(".nf\n")
			}
			verbatim, between = indented, false
		}
		b.WriteString(roffLine(line))
	}
	if verbatim {
		b.WriteString(".fi\n")
	}
}

// roffLine is a line of text, which is not a request whatever it begins with; no text is
// no line.
func roffLine(s string) string {
	if s == "" {
		return ""
	}
	s = roff(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s + "\n"
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ")

func roff(s string) string { return roffEscapes.Replace(s) }
