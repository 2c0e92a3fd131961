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
  # As nixpkgs' mergeEqualOption: the same said twice is no conflict.
  equal =
    path: defs:
    if all (d: d == head defs) defs then head defs else throw "The option `${path}' has conflicting definition values.";
  simple = check: { inherit check; merge = only; };
in
rec {
  types = {
    bool = { check = isBool; merge = equal; };
    int = { check = isInt; merge = equal; };
    str = { check = isString; merge = equal; };
    path = simple (v: isPath v || (isString v && builtins.substring 0 1 v == "/"));
    lines = { check = isString; merge = _: concatStringsSep "\n"; };
    enum = values: simple (v: elem v values);
    nullOr = type: simple (v: v == null || type.check v);
    listOf = type: { check = v: isList v && all type.check v; merge = _: concatLists; };
    attrsOf = type: {
      check = isAttrs;
      # Each attribute with the priorities and the merging of an option of its own.
      merge =
        path: defs:
        mapAttrs (n: _: evalOption "${path}.${n}" { inherit type; } (map (d: d.${n}) (filter (hasAttr n) defs))) (
          foldl' (a: b: a // b) { } defs
        );
    };
    # Only what is written is checked: no defaults, no merging.
    submodule = options: simple (v: isAttrs v && all (n: hasAttr n options && options.${n}.check v.${n}) (attrNames v));
    # The first type that all definitions are of.
    oneOf = alternatives: {
      check = v: builtins.any (type: type.check v) alternatives;
      merge = path: defs: (head (filter (type: all type.check defs) alternatives ++ [ { merge = only; } ])).merge path defs;
    };
  };

  mkOption = option: option // { _type = "option"; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkOrder = priority: content: { _type = "order"; inherit priority content; };
  mkBefore = mkOrder 500;
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkDefault = mkOverride 1000;

  # The definitions that a value holds: the lower the priority, the stronger; the lower the order, the further in front.
  discharge =
    v:
    if typeOf v == "if" then
      (if v.condition then discharge v.content else [ ])
    else if typeOf v == "order" then
      map (d: d // { order = v.priority; }) (discharge v.content)
    else if typeOf v == "override" then
      map (d: d // { inherit (v) priority; }) (discharge v.content)
    else
      [ { content = v; order = 1000; priority = 100; } ];

  evalOption =
    path: option: defs:
    let
      discharged = concatMap discharge defs;
      strongest = foldl' (a: d: if d.priority < a then d.priority else a) 1000000 discharged;
      winning = filter (d: d.priority == strongest) discharged;
      contents = map (d: d.content) (sort (a: b: a.order < b.order) winning);
      bad = filter (v: !option.type.check v) contents;
    in
    if bad != [ ] then
      throw "A definition for option `${path}' is not of its type: ${builtins.toJSON (head bad)}"
    else if contents != [ ] then
      option.type.merge path contents
    else
      option.default or (throw "The option `${path}' is used but not defined.");

  evalModules =
    { modules, pkgs ? { } }:
    let
      lib = { inherit types mkOption mkIf mkOrder mkBefore mkOverride mkDefault; };
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
