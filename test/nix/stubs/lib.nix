# What of nixpkgs' lib the modules use, and an evalModules that is strict where the real one is: an option must be declared, a definition
# must be of its type, and priorities and orders mean what they mean there.
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
    intersectAttrs
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    mapAttrs
    sort
    ;

  typeOf = v: if isAttrs v then v._type or "set" else "value";
  only = path: defs: if length defs == 1 then head defs else throw "The option `${path}' is defined more than once.";
  # As nixpkgs' mergeEqualOption: the same said twice is no conflict.
  equal =
    path: defs:
    if all (d: d == head defs) defs then head defs else throw "The option `${path}' has conflicting definition values.";
  same = check: { inherit check; merge = equal; };
in
rec {
  types = {
    bool = same isBool;
    int = same isInt;
    float = same isFloat;
    str = same isString;
    path = same (v: isPath v || (isString v && builtins.substring 0 1 v == "/"));
    enum = values: same (v: elem v values);
    lines = { check = isString; merge = _: concatStringsSep "\n"; };
    # Shallow, and the last one counts.
    attrs = { check = isAttrs; merge = _: foldl' (a: b: a // b) { }; };
    nullOr = type: {
      check = v: v == null || type.check v;
      merge =
        path: defs:
        if all (d: d == null) defs then
          null
        else if elem null defs then
          throw "The option `${path}' is defined both null and not null."
        else
          type.merge path defs;
    };
    listOf = type: {
      check = v: isList v && all (d: typeOf d != "set" || type.check d) v;
      merge = path: defs: map (v: evalOption "${path}.*" { inherit type; } [ v ]) (concatLists defs);
    };
    # Each attribute with the priorities and the merging of an option of its own; without definitions there is none.
    attrsOf = type: {
      check = isAttrs;
      merge =
        path: defs:
        let
          of = n: concatMap discharge (map (d: d.${n}) (filter (hasAttr n) defs));
          names = filter (n: of n != [ ]) (attrNames (foldl' (a: b: a // b) { } defs));
        in
        listToAttrs (map (name: { inherit name; value = evalOption "${path}.${name}" { inherit type; } (of name); }) names);
    };
    submodule = options: submoduleWith { inherit options; };
    # Other names than those of the options are of the type `freeform`.
    submoduleWith =
      { options, freeform ? null }:
      {
        check = isAttrs;
        merge =
          path: defs:
          let
            known = map (d: intersectAttrs options d) defs;
            others = map (d: removeAttrs d (attrNames options)) defs;
          in
          (if freeform == null then { } else (types.attrsOf freeform).merge path others)
          // evalTree path options (if freeform == null then defs else known);
      };
    # The first type that all definitions are of.
    oneOf = alternatives: {
      check = v: builtins.any (type: type.check v) alternatives;
      merge = path: defs: (head (filter (type: all type.check defs) alternatives ++ [ { merge = only; } ])).merge path defs;
    };
    either = a: b: types.oneOf [ a b ];
    # Lists join, and of anything else only the same can be said twice.
    unitOption = {
      check = _: true;
      merge = path: defs: if all isList defs then concatLists defs else equal path defs;
    };
  };
  inherit (types) submoduleWith;

  mkOption = option: option // { _type = "option"; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkOrder = priority: content: { _type = "order"; inherit priority content; };
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;
  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  optional = condition: value: if condition then [ value ] else [ ];
  optionals = condition: values: if condition then values else [ ];
  optionalAttrs = condition: set: if condition then set else { };

  # The definitions that a value holds: the lower the priority, the stronger; the lower the order, the further in front.
  discharge =
    v:
    if typeOf v == "discharged" then
      [ v ]
    else if typeOf v == "if" then
      (if v.condition then discharge v.content else [ ])
    else if typeOf v == "order" then
      map (d: d // { order = v.priority; }) (discharge v.content)
    else if typeOf v == "override" then
      map (d: d // { inherit (v) priority; }) (discharge v.content)
    else
      [ { _type = "discharged"; content = v; order = 1000; priority = 100; } ];

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

  evalModules =
    { modules, pkgs ? { } }:
    let
      lib = {
        inherit
          types
          mkOption
          mkIf
          mkOrder
          mkBefore
          mkAfter
          mkOverride
          mkDefault
          mkForce
          optional
          optionals
          optionalAttrs
          ;
      };
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

      config = evalTree "" options definitions;
    in
    config;
}
