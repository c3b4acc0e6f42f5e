package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xenserver/dtagent/cmd/dtagent/xe"
	"github.com/xenserver/dtagent/observer"
)

func newObserver() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "observer",
		Short: "Make, show and change the local Observers",
		Long: `Make, show and change the Observers of the local directory, in the words of
xe observer-create and its like. A running agent follows within a second.

Parameters: ` + strings.Join(xe.Names(), ", ") + `.
attributes is a map (attributes=k:v,k2:v2 or attributes:k=v), host-uuids,
endpoints and components are sets (endpoints=bugtool,http://host:9411/api/v2/spans).
No components or host-uuids means all; no endpoints means nowhere.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return &verbError{verb: "observer", code: exitUsage}
		},
	}
	dir := cmd.PersistentFlags().String("observers-dir", defaultObserversDir, "directory of the Observer files")
	store := func() xe.Store { return xe.Store{Dir: *dir} }

	add := func(use, short string, args cobra.PositionalArgs, fn func(cmd *cobra.Command, args []xe.Arg) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: args, RunE: work(func(cmd *cobra.Command, words []string) error {
			parsed, err := xe.ParseArgs(words)
			if err != nil {
				return wrongUse(cmd, err)
			}
			return fn(cmd, parsed)
		})}
		cmd.AddCommand(c)
		return c
	}

	add("create name-label=NAME [enabled=true] [name-description=…] [host-uuids=…] [attributes=k:v,…] [endpoints=…] [components=…]",
		"Make an Observer and print its uuid; without endpoints= it writes to the bugtool's files", cobra.MinimumNArgs(1),
		func(cmd *cobra.Command, args []xe.Arg) error {
			o := observer.Observer{Endpoints: []string{observer.Bugtool}}
			if err := xe.Set(&o, args); err != nil {
				return wrongUse(cmd, err)
			}
			if o.NameLabel == "" {
				return wrongUse(cmd, errors.New("name-label=… is missing"))
			}
			id, err := store().Create(o)
			if err != nil {
				return err
			}
			for _, w := range o.Warnings() {
				fmt.Fprintln(cmd.ErrOrStderr(), "dtagent create: note:", w)
			}
			if asJSON(cmd) {
				return printJSON(cmd, map[string]string{"uuid": id})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), id)
			return err
		})

	list := add("list [uuid=…] [name-label=…] [enabled=…]", "Show the Observers, or those with the given values", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, args []xe.Arg) error { return listObservers(cmd, store(), args) })
	list.Flags().Bool("minimal", false, "print only the uuids, separated by commas")

	// change makes a verb that edits the Observer uuid=….
	change := func(use, short string, fn func(cmd *cobra.Command, o *observer.Observer, args []xe.Arg) error) {
		add(use, short, cobra.MinimumNArgs(2), func(cmd *cobra.Command, args []xe.Arg) error {
			id, args, err := take(args, "uuid")
			if err != nil {
				return wrongUse(cmd, err)
			}
			e, err := store().Find(id)
			if err != nil {
				return err
			}
			e.Observer = e.Observer.Clone()
			if err := fn(cmd, &e.Observer, args); err != nil {
				return wrongUse(cmd, err)
			}
			if err := store().Save(e); err != nil {
				return err
			}
			if asJSON(cmd) {
				return printJSON(cmd, e.Observer)
			}
			return nil
		})
	}
	change("param-set uuid=UUID NAME=VALUE…", "Give parameters new values", func(_ *cobra.Command, o *observer.Observer, args []xe.Arg) error {
		if len(args) == 0 {
			return errors.New("nothing to set: name parameters and values, as in enabled=true")
		}
		return xe.Set(o, args)
	})
	change("param-add uuid=UUID param-name=NAME KEY=VALUE | param-key=VALUE", "Put an item into a map, or a value into a set",
		func(_ *cobra.Command, o *observer.Observer, args []xe.Arg) error {
			name, args, err := take(args, "param-name")
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return errors.New("nothing to add: give param-key=VALUE for a set, KEY=VALUE for a map")
			}
			for _, a := range args {
				switch {
				case xe.IsMap(name):
					key := a.Name
					if a.Key != "" {
						key += ":" + a.Key
					}
					err = xe.Add(o, name, key, a.Value)
				case a.Name == "param-key":
					err = xe.Add(o, name, a.Value, "")
				default:
					err = fmt.Errorf("%s=… is not understood: values of a set are given as param-key=VALUE", a.Name)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	change("param-remove uuid=UUID param-name=NAME param-key=KEY", "Take a key out of a map, or a value out of a set",
		func(_ *cobra.Command, o *observer.Observer, args []xe.Arg) error {
			name, args, err := take(args, "param-name")
			if err != nil {
				return err
			}
			key, args, err := take(args, "param-key")
			if err != nil {
				return err
			}
			return errors.Join(xe.Remove(o, name, key), none(args))
		})
	change("param-clear uuid=UUID param-name=NAME", "Empty a map or a set",
		func(_ *cobra.Command, o *observer.Observer, args []xe.Arg) error {
			name, args, err := take(args, "param-name")
			if err != nil {
				return err
			}
			return errors.Join(xe.Clear(o, name), none(args))
		})

	add("param-get uuid=UUID param-name=NAME [param-key=KEY]", "Print the value of a parameter", cobra.MinimumNArgs(2),
		func(cmd *cobra.Command, args []xe.Arg) error {
			id, args, err := take(args, "uuid")
			if err != nil {
				return wrongUse(cmd, err)
			}
			name, args, err := take(args, "param-name")
			if err != nil {
				return wrongUse(cmd, err)
			}
			key, args, _ := take(args, "param-key")
			if err := none(args); err != nil {
				return wrongUse(cmd, err)
			}
			e, err := store().Find(id)
			if err != nil {
				return err
			}
			v, err := xe.Get(&e.Observer, name, key)
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printJSON(cmd, map[string]string{name: v})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), v)
			return err
		})
	add("destroy uuid=UUID", "Remove an Observer", cobra.ExactArgs(1), func(cmd *cobra.Command, args []xe.Arg) error {
		id, _, err := take(args, "uuid")
		if err != nil {
			return wrongUse(cmd, err)
		}
		if err := store().Destroy(id); err != nil {
			return err
		}
		if asJSON(cmd) {
			return printJSON(cmd, map[string]string{"uuid": id})
		}
		return nil
	})
	return cmd
}

// wrongUse is the failure of words that cannot be understood.
func wrongUse(cmd *cobra.Command, err error) error {
	return &verbError{verb: cmd.Name(), code: exitUsage, err: fmt.Errorf("%w\nUsage: dtagent observer %s", err, cmd.Use)}
}

// take returns the value of the argument of that name and the other arguments.
func take(args []xe.Arg, name string) (string, []xe.Arg, error) {
	i := slices.IndexFunc(args, func(a xe.Arg) bool { return a.Name == name && a.Key == "" })
	if i < 0 || args[i].Value == "" {
		return "", args, fmt.Errorf("%s=… is missing", name)
	}
	return args[i].Value, slices.Delete(slices.Clone(args), i, i+1), nil
}

func none(args []xe.Arg) error {
	if len(args) > 0 {
		return fmt.Errorf("%s=… is not understood here", args[0].Name)
	}
	return nil
}

func listObservers(cmd *cobra.Command, store xe.Store, args []xe.Arg) error {
	all, mistakes, err := store.List()
	if err != nil {
		return err
	}
	entries := []observer.Observer{}
	for _, e := range all {
		suits := true
		for _, a := range args {
			v, err := xe.Get(&e.Observer, a.Name, a.Key)
			if err != nil && a.Key == "" {
				return wrongUse(cmd, err)
			}
			suits = suits && err == nil && strings.EqualFold(v, a.Value)
		}
		if suits {
			entries = append(entries, e.Observer)
		}
	}
	if minimal, _ := cmd.Flags().GetBool("minimal"); minimal {
		ids := make([]string, 0, len(entries))
		for _, o := range entries {
			ids = append(ids, o.UUID)
		}
		fmt.Fprintln(cmd.OutOrStdout(), strings.Join(ids, ","))
	} else if asJSON(cmd) {
		if err := printJSON(cmd, entries); err != nil {
			return err
		}
	} else {
		for _, o := range entries {
			printObserver(cmd.OutOrStdout(), &o)
		}
	}
	if len(mistakes) > 0 {
		return fmt.Errorf("files that hold no Observer:\n%w", errors.Join(mistakes...))
	}
	return nil
}

// printObserver prints one record as xe does.
func printObserver(w io.Writer, o *observer.Observer) {
	fmt.Fprintf(w, "uuid ( RO)%17s: %s\n", "", o.UUID)
	for _, name := range xe.Names()[1:] {
		v, _ := xe.Get(o, name, "") // the names are its own
		fmt.Fprintf(w, "%21s (%s): %s\n", name, map[bool]string{true: "MRW", false: " RW"}[xe.IsMap(name)], v)
	}
	fmt.Fprintln(w)
}
