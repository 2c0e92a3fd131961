# What of nixpkgs' lib the client modules use, and an evalModules that is strict where the real one is: an option must be declared,
# a definition must be of its type, and mkIf, mkBefore and mkDefault mean what they mean there.
let
  inherit (builtins)
    all
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    hasAttr
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    mapAttrs
    sort
    ;

  typeOf = v: if isAttrs v then v._type or "set" else "value";
  only = path: defs: if length defs == 1 then head defs else throw "The option `${path}' is defined more than once.";
  simple = check: { inherit check; merge = only; };
in
rec {
  types = {
    bool = simple isBool;
    int = simple isInt;
    str = simple isString;
    path = simple (v: isPath v || (isString v && builtins.substring 0 1 v == "/"));
    lines = { check = isString; merge = _: concatStringsSep "\n"; };
    enum = values: simple (v: elem v values);
    nullOr = type: simple (v: v == null || type.check v);
    listOf = type: { check = v: isList v && all type.check v; merge = _: concatLists; };
    attrsOf = type: {
      check = v: isAttrs v && all (n: type.check v.${n}) (attrNames v);
      merge = path: defs: foldl' (a: b: mapAttrs (n: v: if hasAttr n a && hasAttr n b then throw "`${path}.${n}' twice" else v) (a // b)) { } defs;
    };
    # Only what is written is checked: no defaults, no merging.
    submodule = options: simple (v: isAttrs v && all (n: hasAttr n options && options.${n}.check v.${n}) (attrNames v));
    oneOf = alternatives: simple (v: builtins.any (type: type.check v) alternatives);
  };

  mkOption = option: option // { _type = "option"; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkOrder = priority: content: { _type = "order"; inherit priority content; };
  mkBefore = mkOrder 500;
  mkDefault = content: { _type = "default"; inherit content; };

  evalModules =
    { modules, pkgs ? { } }:
    let
      lib = { inherit types mkOption mkIf mkOrder mkBefore mkDefault; };
      load =
        module:
        let
          value = if isPath module || isString module then import module else module;
          set = if isFunction value then value { inherit lib config pkgs; } else value;
        in
        [ set ] ++ concatMap load (set.imports or [ ]);
      loaded = concatMap load modules;

      mergeDeclarations = foldl' (
        a: b: a // mapAttrs (n: v: if hasAttr n a && typeOf v != "option" then mergeDeclarations [ a.${n} v ] else v) b
      ) { };
      options = mergeDeclarations (map (m: m.options or { }) loaded);
      definitions = map (m: m.config or (removeAttrs m [ "options" "imports" ])) loaded;

      # A mkIf around a set is one around each of its attributes, so that a condition may read other options.
      pushDown = v: if typeOf v == "if" then mapAttrs (_: mkIf v.condition) (pushDown v.content) else v;
      discharge =
        v:
        if typeOf v == "if" then
          (if v.condition then discharge v.content else [ ])
        else if typeOf v == "order" then
          map (d: d // { inherit (v) priority; }) (discharge v.content)
        else if typeOf v == "default" then
          map (d: d // { default = true; }) (discharge v.content)
        else
          [ { content = v; priority = 1000; default = false; } ];

      evalOption =
        path: option: defs:
        let
          discharged = concatMap discharge defs;
          strong = filter (d: !d.default) discharged;
          winning = if strong != [ ] then strong else discharged;
          contents = map (d: d.content) (sort (a: b: a.priority < b.priority) winning);
          bad = filter (v: !option.type.check v) contents;
        in
        if bad != [ ] then
          throw "A definition for option `${path}' is not of its type: ${builtins.toJSON (head bad)}"
        else if contents != [ ] then
          option.type.merge path contents
        else
          option.default or (throw "The option `${path}' is used but not defined.");

      evalTree =
        path: declared: defs:
        let
          sets = map pushDown defs;
          unknown = concatMap (d: filter (n: !hasAttr n declared) (attrNames d)) sets;
          at = n: if path == "" then n else "${path}.${n}";
        in
        if unknown != [ ] then
          throw "The option `${at (head unknown)}' does not exist."
        else
          mapAttrs (
            n: declaration:
            let
              mine = map (d: d.${n}) (filter (hasAttr n) sets);
            in
            if typeOf declaration == "option" then evalOption (at n) declaration mine else evalTree (at n) declaration mine
          ) declared;

      config = evalTree "" options definitions;
    in
    config;
}
