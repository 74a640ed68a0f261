package man

import (
	"testing"

	"github.com/spf13/cobra"
)

func TestManPage(t *testing.T) {
	t.Parallel()
	cmd := &cobra.Command{
		Use: "x FILE", Short: `a \ b`, Run: func(*cobra.Command, []string) {},
		Long: "One.\n'Two'.\n\nThree:\n  a  b\n  -c\nfour", Example: "  x -n",
	}
	cmd.Flags().String("to", "here", "`PLACE` to put it")
	const want = `.TH X 1 "" "postern VERSION" Postern
.SH NAME
x \- a \e b
.SH SYNOPSIS
.B x
FILE [flags]
.SH DESCRIPTION
.PP
One.
\&'Two'.
.PP
Three:
.nf
  a  b
  \-c
.fi
four
.SH OPTIONS
.TP
.B \-\-to PLACE
PLACE to put it (default here)
.SH EXAMPLES
.PP
.nf
  x \-n
.fi
`
	got := page(cmd, "VERSION")
	if got != want {
		t.Errorf("the page is\n%s", got)
	}
}
