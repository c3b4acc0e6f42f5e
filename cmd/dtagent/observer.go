package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/observer"
)

func newObserver() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "observer",
		Short: "Make, show and change the local Observers",
		Long: `Make, show and change the Observers of the local directory, in the words of
xe observer-create and its like. A running agent follows within a second.

Parameters: ` + strings.Join(observer.ParamNames(), ", ") + `.
attributes is a map (attributes=k:v,k2:v2 or attributes:k=v), host-uuids,
endpoints and components are sets (endpoints=bugtool,http://host:9411/api/v2/spans).
No components or host-uuids means all; no endpoints means nowhere.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &verbError{verb: "observer", code: exitUsage}
		},
	}
	dir := cmd.PersistentFlags().String("observers-dir", observer.DefaultDir, "directory of the Observer files")
	add := func(use, short string, args cobra.PositionalArgs, fn func(cmd *cobra.Command, s *observer.Store, w words) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: args, RunE: work(func(cmd *cobra.Command, args []string) error {
			return fn(cmd, observer.NewStore(*dir), args)
		})}
		cmd.AddCommand(c)
		return c
	}

	add("create name-label=NAME [enabled=true] [name-description=…] [host-uuids=…] [attributes=k:v,…] [endpoints=…] [components=…]",
		"Make an Observer and print its uuid; without endpoints= it writes the bugtool's files", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, s *observer.Store, w words) error {
			o, err := observer.FromWords(w...)
			if err != nil {
				return wrongUse(cmd, err)
			}
			if o.UUID, err = s.Create(o); err != nil {
				return err
			}
			printNotes(cmd, o)
			return printUUID(cmd, o.UUID, true)
		})
	list := add("list [NAME=VALUE…]", "Show the Observers, or those with the given values", cobra.ArbitraryArgs, listObservers)
	list.Flags().Bool("minimal", false, "print only the uuids, separated by commas")

	add("param-get uuid=UUID param-name=NAME [param-key=KEY]", "Print the value of a parameter", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, s *observer.Store, w words) error {
			v, err := w.take("uuid", "param-name", "param-key?")
			if err != nil {
				return wrongUse(cmd, err)
			}
			value, err := s.ParamGet(v[0], v[1], v[2])
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printJSON(cmd, map[string]string{v[1]: value})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), value)
			return err
		})
	add("param-set uuid=UUID NAME=VALUE…", "Give parameters new values", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, s *observer.Store, w words) error {
			id, rest, err := w.cut("uuid")
			if err == nil && len(rest) == 0 {
				err = errors.New("nothing to set: name parameters and values, as in enabled=true")
			}
			if err != nil {
				return wrongUse(cmd, err)
			}
			if err := s.ParamSet(id, rest...); err != nil {
				return err
			}
			if o, err := s.Get(id); err == nil {
				printNotes(cmd, o)
			}
			return printUUID(cmd, id, false)
		})
	add("param-add uuid=UUID param-name=NAME KEY=VALUE… | param-key=VALUE", "Put items into a map, or a value into a set", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, s *observer.Store, w words) error {
			id, rest, err := w.cut("uuid")
			var name string
			if err == nil {
				name, rest, err = rest.cut("param-name")
			}
			if err == nil && len(rest) == 0 {
				err = errors.New("nothing to add: give param-key=VALUE for a set, KEY=VALUE for a map")
			}
			if err != nil {
				return wrongUse(cmd, err)
			}
			for i, r := range rest {
				rest[i] = strings.TrimPrefix(r, "param-key=")
			}
			if err := s.ParamAdd(id, name, rest...); err != nil {
				return err
			}
			if o, err := s.Get(id); err == nil {
				printNotes(cmd, o)
			}
			return printUUID(cmd, id, false)
		})
	add("param-remove uuid=UUID param-name=NAME param-key=KEY", "Take a key out of a map, or a value out of a set", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, s *observer.Store, w words) error {
			v, err := w.take("uuid", "param-name", "param-key")
			if err != nil {
				return wrongUse(cmd, err)
			}
			if err := s.ParamRemove(v[0], v[1], v[2]); err != nil {
				return err
			}
			return printUUID(cmd, v[0], false)
		})
	add("param-clear uuid=UUID param-name=NAME", "Empty a map or a set", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, s *observer.Store, w words) error {
			v, err := w.take("uuid", "param-name")
			if err != nil {
				return wrongUse(cmd, err)
			}
			if !isSet(v[1]) && v[1] != "attributes" {
				return wrongUse(cmd, fmt.Errorf("%q is not a list or map; host-uuids, attributes, endpoints and components are", v[1]))
			}
			if err := s.ParamSet(v[0], v[1]+"="); err != nil { // an empty value empties it
				return err
			}
			return printUUID(cmd, v[0], false)
		})
	add("destroy uuid=UUID", "Remove an Observer", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, s *observer.Store, w words) error {
			v, err := w.take("uuid")
			if err != nil {
				return wrongUse(cmd, err)
			}
			if err := s.Destroy(v[0]); err != nil {
				return err
			}
			return printUUID(cmd, v[0], false)
		})
	return cmd
}

// words are arguments of the form name=value.
type words []string

// cut returns the value of the word of that name and the other words.
func (w words) cut(name string) (string, words, error) {
	i := slices.IndexFunc(w, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	if i < 0 || w[i] == name+"=" {
		return "", w, fmt.Errorf("%s=… is missing", name)
	}
	return w[i][len(name)+1:], slices.Delete(slices.Clone(w), i, i+1), nil
}

// take returns the values of the words of these names, and an error if there
// are others. A name that ends in a question mark may be absent.
func (w words) take(names ...string) ([]string, error) {
	out := make([]string, len(names))
	for i, n := range names {
		name, optional := strings.CutSuffix(n, "?")
		v, rest, err := w.cut(name)
		if err != nil && !optional {
			return nil, err
		}
		out[i], w = v, rest
	}
	if len(w) > 0 {
		return nil, fmt.Errorf("%q is not understood here", w[0])
	}
	return out, nil
}

// wrongUse is the failure of words that cannot be understood.
func wrongUse(cmd *cobra.Command, err error) error {
	return &verbError{verb: "observer " + cmd.Name(), code: exitUsage, err: fmt.Errorf("%w\nUsage: dtagent observer %s", err, cmd.Use)}
}

// printUUID says which Observer it was: in JSON always, else if asked for, as
// xe does after observer-create.
func printUUID(cmd *cobra.Command, id string, always bool) error {
	if asJSON(cmd) {
		return printJSON(cmd, map[string]string{"uuid": id})
	}
	if !always {
		return nil
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), id)
	return err
}

// printNotes tells what is allowed but probably not meant.
func printNotes(cmd *cobra.Command, o observer.Observer) {
	for _, note := range o.Warnings() {
		fmt.Fprintf(cmd.ErrOrStderr(), "dtagent observer %s: note: %s\n", cmd.Name(), note)
	}
}

func listObservers(cmd *cobra.Command, s *observer.Store, w words) error {
	type match struct{ name, key, value string }
	var want []match
	for _, arg := range w {
		name, value, ok := strings.Cut(arg, "=")
		name, key, _ := strings.Cut(name, ":")
		if !ok || !slices.Contains(observer.ParamNames(), name) {
			return wrongUse(cmd, fmt.Errorf("%q: write PARAMETER=VALUE; parameters are %s", arg, strings.Join(observer.ParamNames(), ", ")))
		}
		want = append(want, match{name, key, value})
	}
	all, bad := s.List()
	found := []observer.Observer{}
	for _, o := range all {
		if !slices.ContainsFunc(want, func(m match) bool {
			v, err := o.Param(m.name, m.key)
			return err != nil || !strings.EqualFold(v, m.value)
		}) {
			found = append(found, o)
		}
	}
	out := cmd.OutOrStdout()
	minimal, _ := cmd.Flags().GetBool("minimal")
	switch {
	case asJSON(cmd):
		if err := printJSON(cmd, found); err != nil {
			return err
		}
	case minimal:
		ids := make([]string, 0, len(found))
		for _, o := range found {
			ids = append(ids, o.UUID)
		}
		fmt.Fprintln(out, strings.Join(ids, ","))
	default:
		for _, o := range found {
			printObserver(out, o)
		}
	}
	if bad != nil {
		return fmt.Errorf("files that hold no Observer:\n%w", bad)
	}
	return nil
}

// isSet tells whether the parameter is a set of values.
func isSet(name string) bool {
	return name == "host-uuids" || name == "endpoints" || name == "components"
}

// printObserver prints one record as xe does.
func printObserver(w io.Writer, o observer.Observer) {
	for i, name := range observer.ParamNames() {
		v, _ := o.Param(name, "") // the name is its own
		switch {
		case i == 0:
			fmt.Fprintf(w, "%-21s ( RO): %s\n", name, v)
		case name == "attributes":
			fmt.Fprintf(w, "%21s (MRW): %s\n", name, v)
		case isSet(name):
			fmt.Fprintf(w, "%21s (SRW): %s\n", name, v)
		default:
			fmt.Fprintf(w, "%21s ( RW): %s\n", name, v)
		}
	}
	fmt.Fprintln(w)
}
